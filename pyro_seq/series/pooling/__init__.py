"""Forecasts without a model, and pools of these with a pair's own draws."""
