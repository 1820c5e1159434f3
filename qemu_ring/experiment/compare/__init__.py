"""Two sets of results against each other: what differs, and how sure that is."""
