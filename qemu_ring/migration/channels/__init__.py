"""What a migration's bytes go through."""
