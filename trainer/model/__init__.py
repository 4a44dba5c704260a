"""The model: architecture, weights and sampling."""
