"""Pairs that are run step after step: one interface, and its two implementations."""
