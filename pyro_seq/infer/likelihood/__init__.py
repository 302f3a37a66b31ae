"""Log-likelihoods of sequences: exact, bounds, importance weights and their diagnostics."""
