"""Discriminators, their training, and what a sequence earns for their answer."""
