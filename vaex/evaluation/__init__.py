"""Numbers of a trained model over a whole split."""
