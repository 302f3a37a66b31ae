"""Environments of gymnasium: supported spaces, playing, games as sequences, replay."""
