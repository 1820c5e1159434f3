"""One run: guests started, migrated, compared, and its record made."""
