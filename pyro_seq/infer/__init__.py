"""Inference with any pair: objectives, scores, particle filters, sampling, infilling."""
