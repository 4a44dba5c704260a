"""Training objectives: what the model predicts."""
