"""Training: settings, schedules, optimiser, stopping, the trainer and its minibatches."""
