"""What a run shows while it trains: its record, its totals, the terminal, generations, evaluations."""
