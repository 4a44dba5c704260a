"""What a run stores: checkpoints, folders and where it came from."""
