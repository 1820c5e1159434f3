"""`qemu-ring experiment`: plans, runs, results."""
