"""One document per step: from a stream of text to a trained model."""
