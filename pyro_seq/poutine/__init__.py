"""Classify the sites of a trace by steps, and compare a model's sites with a guide's."""
