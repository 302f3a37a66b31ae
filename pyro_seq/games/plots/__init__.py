"""Pictures of games: learning curves, predictions, animations."""
