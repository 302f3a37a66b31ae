"""Piano rolls as sound, pictures and sample files."""
