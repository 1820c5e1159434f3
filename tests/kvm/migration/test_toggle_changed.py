"""A guest that is no longer what it was started as: its twin follows, or nothing happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Device
from qemu_ring.migration.toggling.drives import query_drives, set_limits
from qemu_ring.qmp import Monitor, commands
from tests.kvm.migration.images import disk
from tests.kvm.migration.toggling import MIB, Guest, guest, no_twin
from tests.waiting import DEADLINE, until

pytestmark = pytest.mark.ring

GROWING = ("-m", "slots=4,maxmem=1G", "-smp", "maxcpus=4,sockets=4")


async def refused(one: Guest, words: str, kind: type[QemuRingError] = UsageError) -> None:
    """A toggle is refused with these words, and the guest goes on."""
    with pytest.raises(kind, match=words):
        await one.to("ring:4096")
    assert one.machine.returncode is None
    assert (await commands.query_status(one.machine.monitor)).running
    await one.writes_on()


async def plug_in_memory(one: Guest, path: Path, **properties: object) -> None:
    monitor = one.machine.monitor
    backend = {"qom-type": "memory-backend-file", "id": "more", "size": 16 * MIB}
    backend |= {"mem-path": str(path), "share": True, **properties}
    await monitor.execute("object-add", backend)
    await monitor.execute("device_add", {"driver": "pc-dimm", "id": "dimm9", "memdev": "more"})


async def plug_in_vcpu(one: Guest) -> dict[str, object]:
    monitor = one.machine.monitor
    listed: Any = await monitor.execute("query-hotpluggable-cpus")
    free = next(cpu for cpu in listed if "qom-path" not in cpu)
    place: dict[str, object] = free["props"]
    await monitor.execute("device_add", {"driver": free["type"], "id": "cpu9", **place})
    return place


async def machine(one: Guest) -> tuple[object, object]:
    """Its vCPUs and its plugged memory, but for the processes' own numbers."""
    monitor = one.machine.monitor
    listed: Any = await monitor.execute("query-hotpluggable-cpus")
    vcpus = sorted((str(cpu["props"]), "qom-path" in cpu) for cpu in listed)
    plugged: Any = await monitor.execute("query-memory-devices")
    memory = [{k: v for k, v in m["data"].items() if k != "hotplugged"} for m in plugged]
    return vcpus, memory


async def test_plugged_vcpu_and_memory_are_the_twins_too(binary: Path, tmp_path: Path) -> None:
    async with guest(binary, extra=GROWING) as one:
        await plug_in_vcpu(one)
        await plug_in_memory(one, tmp_path / "more")
        before = await machine(one)
        for tracking in ("ring:4096", "bitmap", "ring:1024"):
            await one.to(tracking)
            assert await machine(one) == before
            await one.writes_on()
        assert (tmp_path / "more").stat().st_size == 16 * MIB


async def test_plugged_memory_that_would_have_to_be_copied(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(binary, extra=GROWING) as one:
        await plug_in_memory(one, tmp_path / "more", share=False)
        with no_twin(monkeypatch):
            await refused(one, "memory more, which was plugged in after")


async def test_plugged_device(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guest(binary) as one:
        arguments = {"driver": "virtio-rng-pci", "id": "rng9"}
        await one.machine.monitor.execute("device_add", arguments)
        with no_twin(monkeypatch):
            await refused(one, r"lack what was plugged in .*: rng9 \(virtio-rng-pci\);")


async def test_unplugged_device(binary: Path) -> None:
    devices = ("-device", "qemu-xhci", "-device", "usb-tablet,id=tablet")
    async with guest(binary, extra=devices) as one:
        await one.to("ring:4096")
        monitor = one.machine.monitor
        with monitor.events("DEVICE_DELETED") as deleted:
            await monitor.execute("device_del", {"id": "tablet"})
            await deleted.wait(timeout=DEADLINE)
        await refused(one, "device usb-tablet .* is missing at the source")


async def test_unplugged_device_that_was_described_is_not_the_twins(binary: Path) -> None:
    devices = (Device("qemu-xhci"), Device("usb-tablet", {"id": "tablet"}))
    async with guest(binary, devices=devices) as one:
        monitor = one.machine.monitor
        with monitor.events("DEVICE_DELETED") as deleted:
            await monitor.execute("device_del", {"id": "tablet"})
            await deleted.wait(timeout=DEADLINE)
        await one.to("ring:4096")
        path = {"path": "/machine/peripheral"}
        listed: Any = await one.machine.monitor.execute("qom-list", path)
        assert "tablet" not in {child["name"] for child in listed}
        await one.writes_on()


@pytest.mark.parametrize("notation", ["pairs", "JSON"])
async def test_memory_that_is_gone(binary: Path, tmp_path: Path, notation: str) -> None:
    """The twin would make its file again."""
    path = tmp_path / "more"
    backend = {"qom-type": "memory-backend-file", "id": "more", "size": MIB, "mem-path": str(path)}
    text = f"memory-backend-file,id=more,size=1M,share=on,mem-path={path}"
    if notation == "JSON":
        text = json.dumps({**backend, "share": True})
    async with guest(binary, extra=("-object", text)) as one:
        await one.to("ring:4096")
        assert path.exists()
        await one.machine.monitor.execute("object-del", {"id": "more"})
        path.unlink()
        await one.to("bitmap")
        assert not path.exists()
        await one.writes_on()


LOST = {
    "anonymous": ("memory-backend-memfd,id=shm,size=2M,share=on", "which has none"),
    "folder": ("memory-backend-file,id=shm,size=2M,share=on,mem-path={folder}", "{folder}"),
    "emptied": (
        "memory-backend-file,id=shm,size=2M,share=on,mem-path={folder}/shm,discard-data=on",
        "would be emptied",
    ),
}


@pytest.mark.parametrize("kind", LOST)
async def test_memory_that_the_twin_would_not_have(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Shared memory is not sent: QEMU would move the guest, and its memory would be empty."""
    backend, words = (text.format(folder=tmp_path) for text in LOST[kind])
    devices = ("-object", backend, "-device", "ivshmem-plain,memdev=shm,master=on")
    async with guest(binary, extra=devices) as one:
        with no_twin(monkeypatch):
            await refused(one, words)


async def test_file_that_another_has_taken_the_place_of(binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "shm"
    backend = f"memory-backend-file,id=shm,size=2M,share=on,mem-path={path}"
    devices = ("-object", backend, "-device", "ivshmem-plain,memdev=shm,master=on")
    async with guest(binary, extra=devices) as one:
        await one.to("ring:4096")
        path.rename(tmp_path / "old")
        path.write_bytes(bytes(2 * MIB))
        await refused(one, "could not find the file behind memory shm")
        (tmp_path / "old").rename(path)
        await one.to("bitmap")
        await one.writes_on()


async def test_virtio_mem(qemu_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before QEMU 8.1 the twin's start would empty the memory that the guest has."""
    async with guest(qemu_path, extra=virtio_mem(tmp_path)) as one:
        with no_twin(monkeypatch):
            await refused(one, "virtio-mem empties", QemuUnsuitableError)


async def test_virtio_mem_that_leaves_memory_alone(patched_qemu: Path, tmp_path: Path) -> None:
    async with guest(patched_qemu, extra=virtio_mem(tmp_path)) as one:
        with (tmp_path / "shm").open("r+b") as file:
            file.write(b"not emptied")
        for tracking in ("ring:4096", "bitmap"):
            await one.to(tracking)
            await one.writes_on()
        assert (tmp_path / "shm").read_bytes().startswith(b"not emptied")


def virtio_mem(folder: Path) -> tuple[str, ...]:
    backend = f"memory-backend-file,id=shm,size=32M,share=on,mem-path={folder}/shm"
    device = "virtio-mem-pci,id=vm0,memdev=shm,requested-size=0"
    return ("-m", "maxmem=1G", "-object", backend, "-device", device)


async def test_disk_is_the_twins(binary: Path, tmp_path: Path) -> None:
    async with guest(binary, extra=disk(tmp_path, "raw")) as one:
        for tracking in ("ring:4096", "bitmap"):
            await one.to(tracking)
            await commands.human(one.machine.monitor, 'qemu-io disk "write -P 90 0 64k"')
            assert (tmp_path / "disk.raw").read_bytes()[: MIB >> 4] == b"\x5a" * (MIB >> 4)
            await one.writes_on()


@pytest.mark.parametrize("image", ["raw", "qcow2"])
async def test_disk_of_a_paused_guest(binary: Path, tmp_path: Path, image: str) -> None:
    """It is the twin's though that does not run: it can be written to, and handed on."""
    async with guest(binary, extra=disk(tmp_path, image)) as one:
        await commands.stop(one.machine.monitor)
        for byte, tracking in enumerate(["ring:4096", "bitmap", "ring:1024"], start=90):
            toggled = await one.to(tracking)
            assert (toggled.running, toggled.notes) == (False, ())
            write = f'qemu-io disk "write -P {byte} 0 64k"'
            await commands.human(one.machine.monitor, write)
            assert bytes([byte]) * (64 << 10) in (tmp_path / f"disk.{image}").read_bytes()
        await commands.cont(one.machine.monitor)
        await one.writes_on()


async def test_guest_that_is_paused_meanwhile(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(binary, extra=disk(tmp_path, "raw")) as one:
        monitor, real = one.machine.monitor, commands.migrate_incoming

        async def stop_first(twin: Monitor, uri: str) -> None:
            await commands.stop(monitor)
            await real(twin, uri)

        with monkeypatch.context() as patch:
            patch.setattr(commands, "migrate_incoming", stop_first)
            with pytest.raises(UsageError, match="paused in that moment"):
                await one.to("ring:4096")
        assert (await commands.query_status(monitor)).status == "paused"
        await one.to("ring:4096")
        await commands.cont(one.machine.monitor)
        await one.writes_on()


async def test_limits_of_a_drive(binary: Path, tmp_path: Path) -> None:
    """Those that were set by QMP, and those that were taken away."""
    limits = (
        "-drive",
        f"if=virtio,id=other,format=raw,file={tmp_path}/other,throttling.iops-read=9",
    )
    (tmp_path / "other").write_bytes(bytes(MIB))
    async with guest(binary, extra=(*disk(tmp_path, "raw"), *limits)) as one:
        before = await query_drives(one.machine.monitor)
        assert (before["disk"].limits, before["other"].limits["iops_rd"]) == ({}, 9)
        wanted: dict[str, int | str] = {"bps": 4 * MIB, "bps_max": 8 * MIB, "bps_max_length": 3}
        await set_limits(one.machine.monitor, before["disk"], wanted)
        await set_limits(one.machine.monitor, before["other"], {})
        for tracking in ("ring:4096", "bitmap"):
            assert (await one.to(tracking)).notes == ()
            now = await query_drives(one.machine.monitor)
            assert now["disk"].limits.items() >= wanted.items()
            assert now["other"].limits == {}
        await one.writes_on()


async def test_disk_that_is_another_image_now(binary: Path, tmp_path: Path) -> None:
    """The twin would open the image below the snapshot."""
    async with guest(binary, extra=disk(tmp_path, "raw")) as one:
        arguments = {
            "device": "disk",
            "snapshot-file": str(tmp_path / "snapshot"),
            "format": "qcow2",
        }
        await one.machine.monitor.execute("blockdev-snapshot-sync", arguments)
        await refused(one, f"drive disk has {tmp_path}/snapshot, in its twin .*/disk.raw;")


async def test_block_job(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guest(binary, extra=disk(tmp_path, "raw")) as one:
        monitor = one.machine.monitor
        arguments = {"device": "disk", "target": str(tmp_path / "copy"), "sync": "full", "speed": 1}
        await monitor.execute("drive-mirror", arguments)
        with no_twin(monkeypatch):
            await refused(one, "block job disk would end")
        await monitor.execute("block-job-cancel", {"device": "disk", "force": True})

        async def over() -> bool:
            return not await monitor.execute("query-block-jobs")

        await until(over, "the job is over")
        await one.to("ring:4096")
        await one.writes_on()


async def test_block_export(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = ("-blockdev", f"raw,node-name=node,file.driver=file,file.filename={tmp_path}/disk")
    (tmp_path / "disk").write_bytes(bytes(MIB))
    async with guest(binary, extra=node) as one:
        monitor = one.machine.monitor
        address = {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}
        await monitor.execute("nbd-server-start", {"addr": address})
        await monitor.execute("block-export-add", {"type": "nbd", "id": "e9", "node-name": "node"})
        with no_twin(monkeypatch):
            await refused(one, "block export e9 would end")
        await monitor.execute("nbd-server-stop")
