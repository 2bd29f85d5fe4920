"""POA pre-training: targets, losses, schedules, optimiser, one update, the loop."""
