"""Settings: typed fields under dotted names, the registry of pairs, and making a pair from its
settings.
"""
