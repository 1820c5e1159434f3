"""Save a guest of a YAML file through a compressor, and restore it.

usage: python examples/save.py [guests/writers.yaml]
"""

import asyncio
import shlex
import sys
import tempfile
from pathlib import Path

from qemu_ring import Migration, MigrationError, MigrationPlan, load_guest, restore, start_guests
from qemu_ring.migration import Command


async def main(file: str, saved: Path) -> None:
    """Start both sides, save, restore, and tell of it."""
    path = shlex.quote(str(saved))
    save = MigrationPlan(channel=Command(f"gzip -1 > {path}"))
    async with start_guests(load_guest(file)) as (source, destination):
        await source.wait_up()
        try:
            async with Migration(source.machine, None, save) as migration:
                result = await migration.complete()
        except MigrationError as error:  # gzip's, too: the guest goes on
            sys.exit(str(error))
        print(f"{result.totals.bytes_sent:,} bytes sent")
        back = MigrationPlan(channel=Command(f"gzip -dc {path}"))
        print(f"restored in {await restore(destination.machine, back):.3f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main((sys.argv[1:] or ["guests/writers.yaml"])[0], Path(folder, "guest.gz")))
