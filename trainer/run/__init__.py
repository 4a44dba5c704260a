"""What a run stores: its folders, its checkpoints, and the provenance of its results."""
