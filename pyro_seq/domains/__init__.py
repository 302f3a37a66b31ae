"""Domains: how raw data becomes a `SequenceBatch`, which parts a pair gets, and how a sample is rendered back."""
