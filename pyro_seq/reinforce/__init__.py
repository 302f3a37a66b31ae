"""REINFORCE as a Pyro objective: advantages, baselines, rollouts."""
