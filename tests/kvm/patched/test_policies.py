"""The patched QEMU: it loses pages only where it is told to, and tells what it does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_qemu,
)
from qemu_ring.memslot import (
    FlushPolicy,
    Shape,
    query_flush,
    query_memslots,
    query_rings,
    set_flush_policy,
)
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.prove import ProveOptions, prove
from qemu_ring.qmp import CommandError
from tests.command import COMMAND
from tests.kvm.patched.guest import running
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

MIB = 1 << 20
MAX_PROOFS = 10
LOSSLESS = [FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY, FlushPolicy.TOMBSTONE]


async def test_best_effort_loses_pages_and_counts_them(patched_qemu: Path) -> None:
    options = ProveOptions(until_loss=True, seconds=300, policy=FlushPolicy.BEST_EFFORT)
    result = await prove(patched_qemu, options)
    assert result.stale_pages > 0
    assert result.flush is not None
    assert result.flush.entries_dropped >= result.stale_pages
    assert result.as_dict()["policy"] == "best-effort"


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("policy", LOSSLESS)
async def test_other_policies_lose_none_in_ring_mode(
    patched_qemu: Path, policy: FlushPolicy, vcpus: int
) -> None:
    options = ProveOptions(policy=policy, seconds=2, vcpus=vcpus, shapes=(Shape.PCI,))
    for _ in range(MAX_PROOFS):
        result = await prove(patched_qemu, options)
        assert result.stale_pages == 0
        assert result.pages_written > 0
        assert result.flush is not None
        assert result.flush.policy is policy
        assert result.flush.entries_dropped == 0
        stats = result.flush.of(result.flush.effective)
        assert stats.removals > result.removals * 0.9
        if result.flush.effective is FlushPolicy.TOMBSTONE:
            assert stats.holds <= stats.removals  # when a slot comes back only
        else:
            assert stats.holds >= stats.removals // 2
        assert sum(stats.hold_ns_log2) == stats.holds
        assert 0 < stats.hold_ns_max <= stats.hold_ns
        if stats.pages_late:  # it was needed: best-effort would have lost these
            return
    pytest.fail("best-effort would have lost nothing, so this shows nothing")


@pytest.mark.parametrize("policy", [FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY])
async def test_policies_that_apply_lose_none_in_bitmap_mode(
    patched_qemu: Path, policy: FlushPolicy
) -> None:
    options = ProveOptions(tracking=Tracking(), policy=policy, seconds=2)
    result = await prove(patched_qemu, options)
    assert result.stale_pages == 0
    assert result.flush is not None
    assert result.flush.effective is policy


@pytest.mark.parametrize("policy", LOSSLESS)
async def test_no_shape_of_removal_loses_a_page(patched_qemu: Path, policy: FlushPolicy) -> None:
    """Each shape gets a round, and several memslots go at once in most of them."""
    options = ProveOptions(policy=policy, rounds=len(Shape))
    result = await prove(patched_qemu, options)
    assert result.stale_pages == 0
    assert {one.shape for one in result.shapes} == {shape.value for shape in Shape}
    for one in result.shapes:
        assert one.removals > 0
        assert one.pages_written > 0
    assert result.flush is not None
    assert result.flush.entries_dropped == 0
    # QEMU counts removals of memslots that log dirty pages; the rest was before a migration.
    assert result.flush.of(policy).removals >= result.removals * 0.9


async def test_best_effort_loses_by_the_test_device_too(patched_qemu: Path) -> None:
    options = ProveOptions(
        until_loss=True,
        seconds=300,
        policy=FlushPolicy.BEST_EFFORT,
        shapes=(Shape.SEVERAL, Shape.SWAP_IDS),
    )
    result = await prove(patched_qemu, options)
    assert result.stale_pages > 0
    assert {page.block for page in result.stale} == {"window"}


async def test_bitmap_mode_loses_too_where_added_slots_start_clean(patched_qemu: Path) -> None:
    tracking = Tracking(manual_protect=False)
    options = ProveOptions(
        tracking=tracking, policy=FlushPolicy.BEST_EFFORT, until_loss=True, seconds=300
    )
    assert (await prove(patched_qemu, options)).stale_pages > 0


@pytest.mark.parametrize("policy", [FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY])
async def test_policies_lose_none_by_bitmap_where_added_slots_start_clean(
    patched_qemu: Path, policy: FlushPolicy
) -> None:
    tracking = Tracking(manual_protect=False)
    result = await prove(patched_qemu, ProveOptions(tracking=tracking, policy=policy, seconds=2))
    assert result.stale_pages == 0
    assert result.pages_written > 0
    assert result.re_add is not None
    assert result.re_add.resent_bytes <= 8 * 4096


async def test_event_for_each_slot_flushed_while_migrating(patched_qemu: Path) -> None:
    async with (
        running(patched_qemu) as (machine, slots),
        running(patched_qemu, destination=True) as (twin, _),
    ):
        await slots.add("slot", 1 << 30)
        with machine.monitor.events("X_MEMSLOT_FLUSH") as events:
            await slots.cycle(["slot"])  # no migration yet, so no event
            # Slow, because the first pass has to take longer than 100 ms.
            pace = Pace(first_pass=4 * MIB, held=MIB // 4)
            async with HeldPrecopy(machine, twin, pace) as migration:
                await migration.hold()
                await slots.cycle(["slot"])
                event = await events.wait(timeout=DEADLINE)
        assert (event.data["address"], event.data["size"]) == (1 << 30, MIB)
        assert event.data["policy"] == "quiesce"
        assert 0 <= event.data["pages-late"] <= event.data["pages"] <= 256
        info = await query_flush(machine.monitor)
        assert info.of(info.effective).removals == 1


async def test_default_is_a_policy_that_loses_nothing(patched_qemu: Path) -> None:
    result = await prove(patched_qemu, ProveOptions(removals=10))
    assert result.flush is not None
    assert result.flush.policy is FlushPolicy.AUTO
    assert result.flush.effective in (FlushPolicy.TOMBSTONE, FlushPolicy.QUIESCE)
    bitmap = await prove(patched_qemu, ProveOptions(tracking=Tracking(), removals=10))
    assert bitmap.flush is not None
    assert bitmap.flush.effective is FlushPolicy.QUIESCE


async def test_slots_and_rings_are_shown_as_they_are(patched_qemu: Path) -> None:
    async with running(patched_qemu) as (machine, slots):
        before = await query_memslots(machine.monitor)
        assert "slot" not in {one.ram_block for one in before}
        await slots.add("slot", 1 << 30)
        (added,) = [s for s in await query_memslots(machine.monitor) if s not in before]
        assert (added.as_id, added.address, added.size) == (0, 1 << 30, MIB)
        assert added.ram_block is not None
        assert added.ram_block.endswith("slot")  # the device's path stands before it
        assert added.offset == 0
        assert not added.log_dirty
        assert not added.read_only
        rings = await query_rings(machine.monitor)
        assert rings.size == 4096
        assert [ring.cpu_index for ring in rings.rings] == [0, 1]
        assert all(0 <= ring.fill <= 4096 for ring in rings.rings)
        await slots.remove("slot")
        assert await query_memslots(machine.monitor) == before


async def test_policy_changes_while_the_guest_runs(patched_qemu: Path) -> None:
    async with running(patched_qemu, ring=False) as (machine, _):
        assert (await query_flush(machine.monitor)).policy is FlushPolicy.AUTO
        info = await set_flush_policy(machine.monitor, FlushPolicy.TOMBSTONE)
        assert info.policy is FlushPolicy.TOMBSTONE
        assert info.effective is FlushPolicy.QUIESCE  # by bitmap there is no tombstone
        assert (await query_rings(machine.monitor)).size == 0


async def test_unpatched_qemu_is_told_apart(qemu_path: Path) -> None:
    if (await probe_qemu(qemu_path)).flush_policies:
        pytest.skip("the QEMU to test with is itself patched")
    with pytest.raises(QemuUnsuitableError, match=r"is not patched; .*qemu-ring build"):
        await prove(qemu_path, ProveOptions(policy=FlushPolicy.QUIESCE))
    async with running(qemu_path) as (machine, _):
        for question in (query_flush, query_memslots, query_rings):
            with pytest.raises(QemuUnsuitableError, match=r"not patched; .*qemu-ring build"):
                await question(machine.monitor)


async def test_tcg_guest_has_no_memslots(patched_qemu: Path) -> None:
    with UnnamedFile("ram", MIB) as ram:
        description = MachineDescription(
            accelerator=Accelerator("tcg"),
            memory=MemoryBackend("ram", ram),
            machine="none",
        )
        async with await Machine.start(patched_qemu, description) as machine:
            with pytest.raises(CommandError, match="KVM is not in use"):
                await query_memslots(machine.monitor)


async def test_commands_show_and_set(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "monitor"

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    async with running(patched_qemu, "-qmp", f"unix:{path},server=on,wait=off"):
        assert "RAM block" in command("slots", str(path))
        document = json.loads(command("slots", "--json", str(path)))
        assert document["schema"]["name"] == "qemu-ring.slots"
        assert {slot["ram_block"] for slot in document["slots"]} >= {"ram"}
        assert "4096 entries each" in command("rings", str(path))
        assert json.loads(command("rings", "--json", str(path)))["size"] == 4096
        said = command("policy", "set", "read-only", str(path))
        assert "policy: read-only; in force: read-only" in said
        said = json.loads(command("policy", "get", "--json", str(path)))
        assert said["effective"] == "read-only"
