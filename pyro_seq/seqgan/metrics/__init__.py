"""Figures of generated sequences: BLEU, diversity, likelihoods at a temperature."""
