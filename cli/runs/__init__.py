"""Commands that make many runs, or give one away."""
