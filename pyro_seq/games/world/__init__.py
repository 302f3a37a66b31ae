"""World models of an environment: parts, steps, and errors of prediction."""
