"""The tasks of SeqGAN: the synthetic oracle, text, melodies."""
