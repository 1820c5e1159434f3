"""Models of what QEMU and KVM do with dirty bits, and the command that checks them."""
