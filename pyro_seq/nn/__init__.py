"""Networks that pairs are made of: feed-forward and recurrent ones, dropout, precision."""
