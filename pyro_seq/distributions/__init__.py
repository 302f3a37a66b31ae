"""Distributions of whole sequences: latent paths, hidden Markov chains."""
