"""Training: one step, the loop around it, the schedule, checkpoints and logs."""
