"""Run folders: files written atomically, checkpoints, metrics, TensorBoard."""
