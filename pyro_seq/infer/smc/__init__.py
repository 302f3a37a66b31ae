"""Particle filters, and moves of whole paths that keep the posterior."""
