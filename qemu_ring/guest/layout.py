"""Addresses and record formats shared with workload.S; change both together."""

from __future__ import annotations

import struct
from typing import Final

PAGE_SIZE: Final = 4096
"""Bytes in a guest page."""

CONTROL: Final = 0x2000
STATISTICS: Final = 0x4000
LOW_MEMORY: Final = 0x100000
"""Everything the firmware uses lies below this guest-physical address (bytes)."""

MAX_VCPUS: Final = 32
MAX_REGIONS: Final = 8
MAX_TABLE_ENTRIES: Final = 4096
MAPPED_BYTES: Final = 64 << 30
"""The firmware maps guest-physical memory up to here."""

MAGIC: Final = 0x4C575251
VERSION: Final = 1
PARAMETERS_FILE: Final = "opt/qemu-ring/parameters"
TABLES_FILE: Final = "opt/qemu-ring/tables"

HEADER: Final = struct.Struct("<IIIII")
"""magic, version, vCPUs, regions, sequence."""
SEQUENCE_OFFSET: Final = 0x10
"""of a 4-byte word; read and written whole, see control.py."""
REGION: Final = struct.Struct("<QQ")
"""guest-physical address, pages."""
REGION_OFFSET: Final = 0x40
STREAM: Final = struct.Struct("<IIQQQQQQQ")
"""pattern, flags, interval, seed, first, count, hot first, hot count, runs."""
MAX_PCI_COMMANDS: Final = 6
PCI_STREAM: Final = struct.Struct(f"<IIQ16xQ{MAX_PCI_COMMANDS}I")
"""The same record for PCI_TOGGLE: pattern, flags, rest, devices, their COMMAND registers."""
STREAM_OFFSET: Final = 0x100
ACK: Final = struct.Struct("<Q")
ACK_OFFSET: Final = 0xF00
FLAG_COLD_ONCE: Final = 1

VCPU_STATISTICS: Final = struct.Struct("<QQQQQQQ8x8Q")
"""state, writes, passes, start TSC, first write TSC, cursor, last page, writes by region."""
