"""Models of an environment: their parts, how they step, how well they predict."""
