"""Remove a memslot a guest writes to while it is migrated, by one flush policy after another.

usage: python examples/removals.py       needs a patched QEMU: qemu-ring build
"""

import asyncio

from qemu_ring import FlushPolicy, HeldPrecopy, Pace
from qemu_ring import parse_guest, query_flush, set_flush_policy, start_guests
from qemu_ring.guest import Pattern, Span, Stream
from qemu_ring.verify import compare

SLOT_PAGES = (32 << 20) // 4096
PACE = Pace(first_pass=20 << 20)  # bytes a second: no more than the guest writes
GUEST = """
memory: 64 MiB
accelerator: kvm
tracking: ring:4096
slots:
  - {name: nic, size: 32 MiB, address: 1 GiB}
  - {name: helper, size: 2 MiB, address: 2 GiB}   # its removal makes QEMU read the ring
workload:
  regions: [{name: nic, slot: nic}]
  streams: [{pattern: loop}]
"""


async def migrate(policy: FlushPolicy) -> None:
    """Hold a migration open, which makes memslots log dirty pages, and remove both slots often."""
    async with start_guests(parse_guest(GUEST)) as (source, destination):
        await source.wait_up()
        assert source.control is not None
        await source.control.wait(
            lambda now: now.vcpus[0].passes > 0, timeout=10, what="it did not write all pages"
        )
        # From now on slowly: a lost page that is written again is lost no more.
        await source.control.set_streams(
            [Stream(Pattern.RANDOM, Span(0, SLOT_PAGES), pages_per_second=5000)]
        )
        await set_flush_policy(source.machine.monitor, policy)
        assert source.slots is not None
        async with HeldPrecopy(source.machine, destination.machine, PACE) as migration:
            await migration.hold()
            for _ in range(200):
                await source.slots.cycle(["nic", "helper"])
            flush = await query_flush(source.machine.monitor)
            await migration.finish()
        comparison = await compare(source.memory_with(destination))
    removals = sum(one.removals for one in flush.stats)
    print(f"{policy.value}: {removals} removals, {comparison.pages_stale_total} stale pages")


async def main() -> None:
    """Only best-effort, which is what QEMU does unpatched, may lose pages."""
    for policy in FlushPolicy:
        if policy is not FlushPolicy.AUTO:
            await migrate(policy)


if __name__ == "__main__":
    asyncio.run(main())
