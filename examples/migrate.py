"""Migrate a guest of a YAML file while it writes, and compare its memory.

usage: python examples/migrate.py [guests/writers.yaml]
"""

import asyncio
import sys

from qemu_ring import AbortRules, Migration, MigrationAbortedError, MigrationPlan
from qemu_ring import load_guest, start_guests

PLAN = MigrationPlan(
    max_bandwidth=500 << 20,  # bytes a second
    downtime_limit=0.2,  # seconds
    abort=AbortRules(seconds=30),
)


async def main(file: str) -> None:
    """Start both sides, migrate, and tell of it."""
    async with start_guests(load_guest(file)) as (source, destination):
        await source.wait_up()
        move = Migration(source.machine, destination.machine, PLAN, verify=True)
        try:
            async with move as migration:
                async for one in migration.iterations():
                    rate = "?" if one.dirty_rate is None else f"{one.dirty_rate / 1e6:.0f}"
                    print(f"pass {one.number}: {one.seconds:.3f} s, {rate} MB/s dirtied")
                result = await migration.complete()
        except MigrationAbortedError as error:
            sys.exit(f"{error}; the guest writes too fast for this plan")
    assert result.comparison is not None
    assert result.downtime.switchover_seconds is not None
    print(f"{result.seconds:.3f} s, {result.downtime.switchover_seconds * 1e3:.1f} ms of downtime")
    print(f"stale pages: {result.comparison.pages_stale_total}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["guests/writers.yaml"]))
