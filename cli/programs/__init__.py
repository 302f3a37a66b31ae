"""The programs of the command: text, music, games, SeqGAN, and what their trainings share."""
