"""Distributions of counts, amounts, shares and heavy tails, exact for numbers of any size."""
