"""Files of tables and arrays as raw tables: cells as they stand, and where each stands."""
