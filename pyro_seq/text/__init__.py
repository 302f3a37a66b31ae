"""Text: vocabularies, windows, training, scores, attribution."""
