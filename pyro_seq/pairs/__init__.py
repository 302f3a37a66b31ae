"""Pairs: a model and a guide; models and guides that are declared by their equations."""
