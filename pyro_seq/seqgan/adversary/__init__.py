"""Discriminators, their training, and rewards by their answers."""
