"""What the model is trained to predict."""
