"""Agents: the policy, imagined games, the updates of model and agent."""
