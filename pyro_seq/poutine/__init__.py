"""What the sites of a trace are: which belong to which step, and what a model and a guide must
share.
"""
