"""What an experiment is: its file, its cells, the order of its runs."""
