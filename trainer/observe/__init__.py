"""What a run shows and records: totals, terminal output, generations, evaluations, re-measured documents."""
