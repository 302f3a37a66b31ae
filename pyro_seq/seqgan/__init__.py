"""SeqGAN: a generator of sequences trained by REINFORCE against a discriminator.

Yu et al. 2017, arXiv 1609.05473.
"""
