"""What all programs share: starting a run, resuming it, restoring its pair."""
