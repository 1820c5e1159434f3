"""How full the dirty rings are while a guest is migrated, on a patched QEMU (qemu-ring build).

usage: python examples/ring_fill.py [guests/writers.yaml]
"""

import asyncio
import sys
import time

from qemu_ring import Migration, MigrationPlan, load_guest, query_rings, start_guests

PLAN = MigrationPlan(max_bandwidth=200 << 20)  # bytes a second
INTERVAL = 0.01  # seconds


async def main(file: str) -> None:
    """A line for each look: the time, and of each vCPU's ring the entries that wait."""
    async with start_guests(load_guest(file)) as (source, destination):
        await source.wait_up()
        async with Migration(source.machine, destination.machine, PLAN) as migration:
            over = asyncio.create_task(migration.complete())
            started = time.monotonic()
            while not over.done():
                state = await query_rings(source.machine.monitor)
                fills = " ".join(f"{ring.fill:6}" for ring in state.rings)
                print(f"{time.monotonic() - started:6.3f} s  {fills}  of {state.size}")
                await asyncio.wait({over}, timeout=INTERVAL)
            result = await over
    print(f"migrated in {result.seconds:.3f} s")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["guests/writers.yaml"]))
