"""Models of piano rolls: parts, settings, training, presets."""
