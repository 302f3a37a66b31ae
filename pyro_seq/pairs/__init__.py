"""Pairs of a model and a guide, and models and guides that declare their equations."""
