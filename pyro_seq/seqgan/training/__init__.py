"""Training of generators, by likelihood and against a discriminator."""
