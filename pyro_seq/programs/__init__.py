"""What text, music, games and SeqGAN share: beginning a run, going on with one, restoring its
pair.
"""
