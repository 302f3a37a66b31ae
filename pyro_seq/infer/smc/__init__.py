"""Particle filters, and moves of whole paths that leave the posterior invariant."""
