"""How surprising the cells of series are: what each step was predicted, and p-values."""
