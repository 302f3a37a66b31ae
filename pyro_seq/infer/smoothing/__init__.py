"""Latents given observations, step by step: exact where that is known how, else by particles."""
