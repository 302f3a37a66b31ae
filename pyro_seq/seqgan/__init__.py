"""SeqGAN (Yu et al. 2017, arXiv 1609.05473): a generator of sequences trained by REINFORCE against
a discriminator.
"""
