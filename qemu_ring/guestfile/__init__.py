"""Guests described in a YAML file, and started from it."""

from qemu_ring.guestfile.errors import GuestFileError
from qemu_ring.guestfile.load import json_schema, load_guest, parse_guest
from qemu_ring.guestfile.pair import start_guests
from qemu_ring.guestfile.schema import GuestDescription
from qemu_ring.guestfile.start import RunningGuest, start_guest

__all__ = [
    "GuestDescription",
    "GuestFileError",
    "RunningGuest",
    "json_schema",
    "load_guest",
    "parse_guest",
    "start_guest",
    "start_guests",
]
