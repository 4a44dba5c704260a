"""Import from and export to the Hugging Face ecosystem."""
