"""A running guest moved to another way of tracking, its memory left where it is."""
