"""Text: vocabularies, windows, training, scores, authorship attribution."""
