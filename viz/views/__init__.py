"""What to show, before it is drawn."""
