"""The training step, its optimizer, schedule and safeguards."""
