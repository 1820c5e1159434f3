"""The main job on a real QEMU: losses are found where they are, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import ExitStatus, HostError, QemuUnsuitableError
from qemu_ring.memslot import FlushInfo, Shape
from qemu_ring.prove import Control, ProveOptions, ProveProgress, Writer, prove
from qemu_ring.qmp import Monitor

RING = Tracking(4096)
SOME_PAGES = 8 * 4096  # the statistics page and the like, dirty or not by chance


@pytest.mark.ring
async def test_ring_mode_loses_pages_on_an_unpatched_qemu(qemu_path: Path) -> None:
    seen: list[ProveProgress] = []
    options = ProveOptions(tracking=RING, until_loss=True, seconds=300)
    result = await prove(qemu_path, options, on_progress=seen.append)
    assert result.exit_status is ExitStatus.BAD
    assert result.stale_pages == len(result.stale) > 0
    assert result.first_stale_seconds is not None
    assert result.first_stale_seconds <= result.seconds
    assert result.pages_written > result.stale_pages
    assert result.removals > 0
    assert {page.block for page in result.stale} == {"slot"}
    assert all(page.source_digest != page.destination_digest for page in result.stale)
    assert seen[-1].stale_pages == result.stale_pages
    removals = [progress.removals for progress in seen]
    assert removals == sorted(removals)


@pytest.mark.ring
@pytest.mark.parametrize("control", list(Control))
@pytest.mark.parametrize("vcpus", [1, 2])
async def test_controls_are_clean(qemu_path: Path, control: Control, vcpus: int) -> None:
    options = ProveOptions(tracking=RING, control=control, seconds=1.5, vcpus=vcpus)
    result = await prove(qemu_path, options)
    assert result.stale_pages == 0
    assert result.exit_status is ExitStatus.GOOD
    if control is Control.IDLE:
        assert result.pages_written == 0
        assert result.removals >= 64
    else:
        assert result.pages_written == 8192 * len(result.rounds)  # every page of the slot
        assert result.removals == 0


@pytest.mark.kvm
async def test_bitmap_mode_sends_re_added_slots_again_instead(qemu_path: Path) -> None:
    result = await prove(qemu_path, ProveOptions(tracking=Tracking(), seconds=2))
    if not result.kvm.initially_set:
        pytest.skip("this KVM does not start slots all dirty, so bitmap mode loses pages too")
    assert result.stale_pages == 0
    assert result.pages_written > 0
    assert result.re_add is not None
    assert abs(result.re_add.resent_bytes - result.re_add.slot_bytes) <= SOME_PAGES


@pytest.mark.ring
async def test_ring_mode_sends_no_re_added_slot_again(qemu_path: Path) -> None:
    result = await prove(qemu_path, ProveOptions(tracking=RING, removals=10))
    assert result.re_add is not None
    assert result.re_add.resent_bytes <= SOME_PAGES
    assert result.removals == 10
    kinds = [one.kind for one in result.rounds]
    assert kinds[-2:] == ["baseline", "re-add"]
    assert set(kinds[:-2]) == {"removals"}  # one round, but more where a migration is soon over


@pytest.mark.ring
@pytest.mark.parametrize(
    ("machine", "vcpus", "ring"), [("q35", 1, 1024), ("pc", 4, 65536), ("q35", 2, 4096)]
)
async def test_every_shape_runs(qemu_path: Path, machine: str, vcpus: int, ring: int) -> None:
    options = ProveOptions(tracking=Tracking(ring), machine=machine, vcpus=vcpus, removals=20)
    result = await prove(qemu_path, options)
    assert result.removals == 20
    assert result.pages_written > 0


@pytest.mark.kvm
async def test_memory_and_logs_in_directories(qemu_path: Path, tmp_path: Path) -> None:
    options = ProveOptions(
        tracking=Tracking(),
        removals=2,
        memory_directory=Path("/dev/shm"),
        log_directory=tmp_path,
    )
    await prove(qemu_path, options)  # that nothing is left in /dev/shm is checked for all tests
    serial = (tmp_path / "source.serial").read_text()
    assert "qemu-ring workload: running" in serial
    assert (tmp_path / "destination.output").exists()


@pytest.mark.kvm
async def test_too_little_memory_is_refused_before_anything_starts(
    qemu_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemu_ring.machine.host.memory_available_bytes", lambda _root: 64 << 20)
    with pytest.raises(HostError, match=r"not enough memory .* 64 MiB are available"):
        await prove(qemu_path, ProveOptions(tracking=Tracking()))


@pytest.mark.kvm
async def test_too_little_space_for_all_files_is_refused_though_each_would_fit(
    qemu_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemu_ring.machine.memory.shm_free_bytes", lambda _path: 100 << 20)
    options = ProveOptions(tracking=Tracking(), memory_directory=Path("/dev/shm"))
    with pytest.raises(HostError, match=r"not enough space in /dev/shm: 164 MiB needed, 100 MiB"):
        await prove(qemu_path, options)


DEVICE = ProveOptions(tracking=RING, writer=Writer.VHOST_USER, seconds=2)


@pytest.mark.ring
async def test_writes_of_a_device_are_lost_on_an_unpatched_qemu(qemu_path: Path) -> None:
    result = await prove(qemu_path, DEVICE)
    assert result.exit_status is ExitStatus.BAD
    assert result.pages_written > result.stale_pages > 0
    assert {page.block for page in result.stale} == {"slot"}


@pytest.mark.ring
@pytest.mark.parametrize(("machine", "tracking"), [("pc", RING), ("q35", Tracking())])
async def test_writes_of_a_device_are_not_lost_on_the_patched_qemu(
    patched_qemu: Path, machine: str, tracking: Tracking
) -> None:
    """In no shape of removal, however the log changes its size."""
    rounds = len(Shape)
    options = replace(DEVICE, machine=machine, tracking=tracking, seconds=None, rounds=rounds)
    result = await prove(patched_qemu, options)
    assert result.stale_pages == 0
    assert result.removals > 0
    assert all(one.pages_written > 0 for one in result.rounds if one.kind == "removals")
    assert {one.shape for one in result.shapes} == {shape.value for shape in Shape}


@pytest.mark.ring
@pytest.mark.parametrize("control", list(Control))
async def test_controls_of_a_device_s_writes_are_clean(qemu_path: Path, control: Control) -> None:
    result = await prove(qemu_path, replace(DEVICE, control=control))
    assert result.stale_pages == 0
    if control is Control.IDLE:
        assert result.pages_written == 0
    else:
        assert result.pages_written == 8192 * len(result.rounds)


async def test_series_without_its_counters_is_proved_all_the_same(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU with the parts `fixes` and `flush` has policies, and no command that tells of them."""

    async def unknown(monitor: Monitor) -> FlushInfo:
        raise QemuUnsuitableError("no x-query-memslot-flush")

    monkeypatch.setattr("qemu_ring.prove.run.query_flush", unknown)
    result = await prove(patched_qemu, ProveOptions(rounds=1))
    assert result.flush is None
    assert result.removals > 0
    assert result.stale_pages == 0
