"""Pictures of SeqGAN's figures."""
