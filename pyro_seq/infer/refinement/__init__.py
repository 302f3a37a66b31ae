"""Test-time inference: a guide's answer for each sequence improved by its own gradient steps."""
