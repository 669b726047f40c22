"""Training: one engine for every model, from the first step to the last checkpoint."""
