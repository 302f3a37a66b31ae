"""Figures of music: likelihoods, a baseline, statistics, reports."""
