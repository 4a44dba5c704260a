"""The data: sources, document streams and tokenizers."""
