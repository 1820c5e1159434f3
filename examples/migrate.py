"""Migrate a guest of a YAML file while it writes, and compare its memory.

usage: python examples/migrate.py [guests/writers.yaml]
"""

import asyncio
import sys

from qemu_ring import (
    AbortRules,
    Block,
    GuestDowntime,
    Migration,
    MigrationAbortedError,
    MigrationPlan,
    firmware_writes,
    load_guest,
    start_guest,
)

PLAN = MigrationPlan(
    max_bandwidth=500 << 20,  # bytes a second
    downtime_limit=0.2,  # seconds
    abort=AbortRules(seconds=30),
)


async def main(file: str) -> None:
    """Start both sides, migrate, and tell of it."""
    guest = load_guest(file)
    async with (
        start_guest(guest) as source,
        start_guest(guest, incoming="defer", paused=True) as destination,
    ):
        await source.wait_up()
        memory = [
            Block(name, ours.fd, destination.files[name].fd, ours.size)
            for name, ours in source.files.items()
        ]
        counter, its_copy = (
            firmware_writes(one.files["ram"].fd, guest.vcpus) for one in (source, destination)
        )
        try:
            async with Migration(
                source.machine,
                destination.machine,
                PLAN,
                verify=memory,
                guest_downtime=GuestDowntime(counter, its_copy),
            ) as migration:
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
