"""Games: learn how an environment of gymnasium behaves as a sequence pair, train an agent in what
has been learnt, and let it play.
"""
