"""Log-likelihoods of sequences: exact ones, bounds, importance weights and how far they can be
trusted.
"""
