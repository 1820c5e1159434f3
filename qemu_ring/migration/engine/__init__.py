"""How a migration is carried out: both sides set up, watched, and brought to an end."""
