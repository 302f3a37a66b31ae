"""Typed settings under dotted names, the registry of pairs, and pairs from settings."""
