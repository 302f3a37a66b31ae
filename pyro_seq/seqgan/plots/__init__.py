"""Plots of SeqGAN's figures."""
