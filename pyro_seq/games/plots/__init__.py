"""Plots of games: learning curves, predictions, animations."""
