"""Files and frames as series, and the schema that says what each column is."""
