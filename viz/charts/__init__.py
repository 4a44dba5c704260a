"""Images: charts, comparisons and time lapses."""
