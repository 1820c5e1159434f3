"""Which runs go on when, and where: on this host, or on a cluster."""
