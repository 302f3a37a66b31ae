"""Series: numbers, counts, categories and yes-or-no values over time, from anyone's files."""
