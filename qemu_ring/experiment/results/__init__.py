"""What is kept of an experiment: written, read, and as tables."""
