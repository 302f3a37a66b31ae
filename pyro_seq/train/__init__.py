"""Training: settings, schedules, optimiser, the loop, the trainer and its minibatches."""
