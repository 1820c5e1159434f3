"""The `qemu-ring` command's entry. Small, so that Ctrl-C and closed streams find it prepared."""

from __future__ import annotations

import sys

from qemu_ring.cli.frame.starting import quiet_interrupts

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the documented exit status."""
    with quiet_interrupts():
        from qemu_ring.cli.frame.streams import guard_streams

        guard_streams()
        from qemu_ring.cli.ending import status_of
    sys.exit(int(status_of(arguments)))


if __name__ == "__main__":
    main()
