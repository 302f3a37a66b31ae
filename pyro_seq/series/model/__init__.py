"""Models of series: windows as batches, parts of a schema's kinds, settings."""
