"""What every training has: callbacks, checkpoints, interruption, seeds."""
