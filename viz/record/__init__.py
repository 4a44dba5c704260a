"""The run store: its writer, its readers and its exports."""
