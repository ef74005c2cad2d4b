"""Sweeps: many runs from one command. Planning the jobs, launching and resuming them, and reporting the outcome."""
