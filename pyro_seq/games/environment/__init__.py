"""Environments of gymnasium: which are taken, playing them, games as sequences, the games to learn
from.
"""
