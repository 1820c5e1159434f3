"""How long does a guest stand still: precopy against postcopy, by its own counter.

usage: python examples/downtime.py [guests/writers.yaml]
"""

import asyncio
import statistics
import sys

from qemu_ring import GuestDowntime, Migration, MigrationPlan, Postcopy, Precopy
from qemu_ring import load_guest, start_guests

REPEATS = 5


async def downtime(file: str, kind: Precopy | Postcopy) -> float:
    """Milliseconds between two writes of the guest, at the one side and at the other."""
    async with start_guests(load_guest(file)) as (source, destination):
        await source.wait_up()
        counters = GuestDowntime.of(source, destination)
        plan = MigrationPlan(kind=kind, max_bandwidth=500 << 20)
        pair = source.machine, destination.machine
        async with Migration(*pair, plan, guest_downtime=counters) as migration:
            result = await migration.complete()
    return (result.downtime.guest_seconds or float("nan")) * 1e3


async def main(file: str) -> None:
    """Each kind in turn, so that what else the host does meets both."""
    found: dict[str, list[float]] = {"precopy": [], "postcopy": []}
    for _ in range(REPEATS):
        found["precopy"].append(await downtime(file, Precopy()))
        found["postcopy"].append(await downtime(file, Postcopy()))
    for kind, times in found.items():
        print(f"{kind}: median {statistics.median(times):.1f} ms, n={len(times)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["guests/writers.yaml"]))
