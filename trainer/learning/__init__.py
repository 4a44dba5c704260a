"""How the model learns: the step, its optimizer, schedule and safeguards."""
