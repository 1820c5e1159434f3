"""`dirty-rate` and `limit` as a user runs them, on a guest that runs already."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.machine import Accelerator
from qemu_ring.qmp import commands
from tests.command import COMMAND
from tests.qemu.dirty.conftest import MIB
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.qemu.dirty.conftest import StartWriter, Writer

pytestmark = pytest.mark.ring

RING = Accelerator("kvm", {"dirty-ring-size": 4096})
TRACKING = {"accelerator": "kvm", "mode": "ring", "ring_entries": 4096}


async def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(
        subprocess.run, [*COMMAND, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stderr
    return done


async def is_patched(guest: Writer) -> bool:
    return (await guest.monitor.schema()).has_command("x-query-memslot-flush")


async def test_dirty_rate(start_writer: StartWriter) -> None:
    async with start_writer(RING, [3000, 0]) as guest:
        words = await run("dirty-rate", str(guest.socket))
        done, written = await guest.during(run("dirty-rate", str(guest.socket), "--json"))
        patched = await is_patched(guest)
    tracking, rate, first, second = words.stdout.splitlines()
    assert tracking == "tracking: ring:4096"
    assert rate.startswith("dirty rate: ")
    assert "MiB/s, by dirty-ring for 1" in rate
    assert first.startswith("  vCPU 0: ")
    assert second == "  vCPU 1: 0 MiB/s"
    assert (words.stderr, done.stderr) == ("", "")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema"] == {"name": "qemu-ring.dirty-rate", "version": 1}
    assert document["qemu"]["patched"] is patched
    assert document["tracking"] == TRACKING
    assert document["mode"] == "dirty-ring"
    assert 1 <= document["seconds"] < DEADLINE
    assert [one["vcpu"] for one in document["vcpus"]] == [0, 1]
    assert document["vcpus"][1]["bytes_per_second"] == 0
    told, seconds = document["bytes_per_second"], document["seconds"]
    assert written.allows(told, seconds, [0, 1]), (told, written.mean)


async def test_guest_that_is_paused_writes_nothing_and_that_is_said(
    start_writer: StartWriter,
) -> None:
    async with start_writer(RING, [3000]) as guest:
        await commands.stop(guest.monitor)
        words = await run("dirty-rate", str(guest.socket))
        done = await run("dirty-rate", str(guest.socket), "--json")
        await commands.cont(guest.monitor)
        again = await run("dirty-rate", str(guest.socket), "--json")
    assert words.stdout.splitlines()[-1] == (
        "the guest did not run all the time (paused): one that is stopped writes nothing"
    )
    document = json.loads(done.stdout)
    assert (document["bytes_per_second"], document["run_state"]) == (0, "paused")
    document = json.loads(again.stdout)
    assert document["bytes_per_second"] > 0
    assert document["run_state"] == "running"


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["words", "json"])
async def test_watch_goes_on_until_a_signal(start_writer: StartWriter, form: list[str]) -> None:
    """And each measurement is a line, there as soon as it is done."""
    async with start_writer(RING, [3000]) as guest:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("dirty-rate", str(guest.socket), "--watch", *form),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert said == b"qemu-ring: ended by SIGINT\n"
    for line in lines:
        if form:
            assert json.loads(line)["bytes_per_second"] > 0
        else:
            assert b"MiB/s  (vCPU 0: " in line


async def test_dirty_rate_that_cannot_be(start_writer: StartWriter) -> None:
    async with start_writer(RING, [0]) as guest:
        done = await run("dirty-rate", str(guest.socket), "--mode", "dirty-bitmap", expect=3)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "tracking is ring:4096; measure by dirty-ring" in done.stderr


async def test_limit(start_writer: StartWriter) -> None:
    async with start_writer(RING, [3000, 0]) as guest:
        socket = str(guest.socket)
        assert (await run("limit", "get", socket)).stdout == "No vCPU has a dirty limit.\n"
        done = await run("limit", "set", socket, "50M")
        assert [line.split() for line in done.stdout.splitlines()] == [
            ["vCPU", "limit"],
            ["0", "50", "MiB/s"],
            ["1", "50", "MiB/s"],
        ]
        assert done.stderr == ""
        done = await run("limit", "set", socket, "--vcpu", "1", "5000000", "--json")
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["schema"] == {"name": "qemu-ring.limit", "version": 1}
        assert document["qemu"]["patched"] is await is_patched(guest)
        assert document["tracking"] == TRACKING
        assert [(one["vcpu"], one["limit_bytes_per_second"]) for one in document["limits"]] == [
            (0, 50 * MIB),
            (1, 5 * MIB),
        ]
        assert "QEMU takes whole MiB/s: 5 MiB/s for 5,000,000 bytes/s\n" in done.stderr
        assert "lets it dirty about 16 MiB/s in any case\n" in done.stderr
        done = await run("limit", "get", socket)
        assert done.stdout.split()[:3] == ["vCPU", "limit", "dirtied"]
        done = await run("limit", "cancel", socket, "--vcpu", "0", "--json")
        assert [one["vcpu"] for one in json.loads(done.stdout)["limits"]] == [1]
        assert (await run("limit", "cancel", socket)).stdout == "No vCPU has a dirty limit.\n"


async def test_limits_that_cannot_be(start_writer: StartWriter) -> None:
    async with start_writer(RING, [0]) as guest:
        socket = str(guest.socket)
        done = await run("limit", "set", socket, "50M", "--vcpu", "9", expect=2)
        assert done.stderr == "qemu-ring: this guest has no vCPU 9; it has vCPU 0\n"
    async with start_writer(Accelerator("kvm"), [0]) as guest:
        done = await run("limit", "set", str(guest.socket), "50M", expect=3)
        assert "this guest's tracking is bitmap; start the guest with" in done.stderr
        assert done.stderr.count("\n") == 1
