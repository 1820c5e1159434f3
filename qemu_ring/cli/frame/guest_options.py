"""Options of commands that start guests, or move them, by tracking and flush policy."""

from __future__ import annotations

from pathlib import Path

import click

from qemu_ring.memslot import FlushPolicy

__all__ = ["FLUSH_POLICIES", "log_directory_option", "tracking_option"]

FLUSH_POLICIES = click.Choice([policy.value for policy in FlushPolicy])

tracking_option = click.option(
    "--tracking",
    metavar="ring:SIZE|bitmap",
    default="ring:4096",
    show_default=True,
    help="How dirty pages are tracked; SIZE in entries, a power of two.",
)

log_directory_option = click.option(
    "--log-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep the QEMUs' logs there.",
)
