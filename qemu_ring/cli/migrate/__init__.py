"""`qemu-ring migrate`, and `control`, which changes a migration under way."""
