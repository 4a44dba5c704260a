"""The training data: sources, document streams and tokenizers."""
