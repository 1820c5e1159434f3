"""`qemu-ring top`: on the screen, or as metrics."""
