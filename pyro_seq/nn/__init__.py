"""Networks that pairs are made of: feed-forward, recurrent, dropout, precision."""
