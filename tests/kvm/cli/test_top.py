"""`qemu-ring top` on real guests: what it tells is so, and a guest that goes away ends nothing."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.memslot import PciSlots, query_flush, query_memslots
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.qmp import Monitor, commands
from tests.kvm.cli.top_guests import (
    HEIGHT,
    MIB,
    RAM,
    WIDTH,
    Guest,
    Terminal,
    about,
    documents,
    guest_of,
    run,
    running,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.ring

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "top.md").read_text(encoding="utf-8")
# The first pass, over little memory, has to last: QEMU knows its bandwidth after 100 ms only.
PACE = Pace(first_pass=20 * MIB, held=2 * MIB)
HIDDEN = "not patched: rings and slots are hidden; qemu-ring build"


async def test_snapshot_of_both_kinds(qemu_path: Path, patched_qemu: Path, tmp_path: Path) -> None:
    async with (
        running(patched_qemu, tmp_path / "new.qmp") as new,
        running(qemu_path, tmp_path / "old.qmp", tracking="bitmap") as old,
    ):
        missing = tmp_path / "missing.qmp"
        done = await run(new.socket, old.socket, missing, "--dirty-rate")
        slots = await query_memslots(new.machine.monitor)
        versions = [".".join(map(str, one.machine.monitor.version)) for one in (new, old)]
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    first, second, third = done.stdout.split("─" * WIDTH + "\n")[1:]
    assert first.startswith("new ")
    assert f"QEMU {versions[0]}, patched  running" in first
    assert "ring:4096" in first
    assert "0 removals/s (0 in all), 0 late pages" in first
    size = sum(slot.size for slot in slots) / MIB
    assert f"{len(slots)} with {size:.3g} MiB, none logs dirty pages" in first
    assert re.search(r"MiB/s by page-sampling for [\d.]+ m?s, \d s ago", first)
    assert re.search(r"vCPU 0 +fill ░+ +0%  reaped ░+ +0/s  full +0$", first, re.MULTILINE)
    assert second.startswith("old ")
    assert f"QEMU {versions[1]}  running" in second
    assert "tracking   bitmap" in second
    assert second.count(HIDDEN) == done.stdout.count(HIDDEN) == 1
    assert re.search(r"MiB/s by page-sampling for 1 s", second)
    assert "vCPU" not in second
    assert "not there" in third
    assert "no QMP session: No such file or directory" in third


async def test_what_it_tells_of_a_migration_is_so(patched_qemu: Path, tmp_path: Path) -> None:
    """Rates of rings and removals against what the guest and the test themselves did."""
    async with (
        running(patched_qemu, tmp_path / "source.qmp", pages_per_second=5000) as source,
        running(patched_qemu, tmp_path / "destination.qmp", incoming=True) as destination,
        HeldPrecopy(source.machine, destination.machine, PACE) as migration,
    ):
        assert source.control is not None
        await migration.hold()
        async with documents(source.socket, "--interval", "0.5") as found:
            toggling = asyncio.create_task(_toggle(source.slots))
            samples: list[dict[str, Any]] = []
            written: list[tuple[float, int]] = []
            while len(samples) < 6:  # a guest of a busy host may be late with an answer
                sample = await anext(found)
                if guest_of(sample, source)["presence"] == "seen":
                    samples.append(sample)
                    written.append((sample["time"], source.control.statistics().writes))
            toggling.cancel()
            await asyncio.wait({toggling})
        flush = await query_flush(source.machine.monitor)
        info = await migration.finish()
    told = [guest_of(sample, source) for sample in samples]
    times = [sample["time"] for sample in samples]
    last = told[-1]
    assert last["presence"] == "seen"
    assert (last["run_state"], last["running"]) == ("running", True)
    assert last["tracking"] == {"accelerator": "kvm", "mode": "ring", "ring_entries": 4096}
    # The guest writes each page once before it comes to it again, so each is an entry, if it
    # is harvested before: a pass takes 1.6 s, and each removal harvests.
    rate = (written[-1][1] - written[0][1]) / (written[-1][0] - written[0][0])
    mean = sum(one["rings"]["vcpus"][0]["reaped_per_second"] for one in told) / len(told)
    assert rate / 4 < mean < rate * 1.5
    reaped = [one["rings"]["vcpus"][0]["reaped"] for one in told]
    assert reaped == sorted(reaped)
    assert reaped[-1] > reaped[0]
    assert last["rings"]["size"] == 4096
    removals = [one["flush"]["removals"] for one in told]
    assert removals == sorted(removals)
    counted = source.slots.removals + 1  # and maybe the one that was under way in the end
    assert 0 < removals[-1] <= flush.of(flush.effective).removals <= counted
    assert removals[-1] > removals[0]
    added_up = sum(
        one["flush"]["removals_per_second"] * (time - before)
        for one, time, before in zip(told[1:], times[1:], times, strict=False)
    )
    assert 0.5 * (removals[-1] - removals[0]) <= added_up <= 2 * (removals[-1] - removals[0])
    (slots,) = last["slots"]
    assert slots["size"] >= RAM
    assert slots["logging"] > 0
    assert last["migration"]["status"] == "active"
    assert 2 <= last["migration"]["iteration"] <= (info.ram.dirty_sync_count if info.ram else 0)
    assert 0 < last["migration"]["remaining"] <= last["migration"]["total"]
    assert 0.5 * MIB < last["migration"]["bandwidth"] < 10 * MIB
    assert last["migration"]["expected_downtime"] > 0


async def _toggle(slots: PciSlots) -> None:
    while True:
        for name, number in (("a", 1), ("b", 2)):
            await slots.remove(name)
            await slots.add(name, number << 30)


async def test_killed_in_the_middle_and_back(
    qemu_path: Path, patched_qemu: Path, tmp_path: Path
) -> None:
    victim, keeper = tmp_path / "victim.qmp", tmp_path / "keeper.qmp"
    async with running(qemu_path, keeper), AsyncExitStack() as first:
        guest = await first.enter_async_context(running(patched_qemu, victim))
        with Terminal(victim, keeper, "--interval", "0.2") as terminal:
            text = await terminal.until(lambda text: "0 removals/s" in text)
            assert "vCPU 0" in about(text, "victim")
            assert HIDDEN in about(text, "keeper")
            guest.machine.kill()
            text = await terminal.until(lambda text: "gone for" in text)
            gone = about(text, "victim")
            assert re.match(r"victim +\S+ +QEMU [\d.]+, patched  gone for ", gone)
            assert "tracking" not in gone
            assert HIDDEN in about(text, "keeper")
            await first.aclose()
            async with running(patched_qemu, victim):
                text = await terminal.until(lambda text: "gone for" not in text)
                assert "running" in about(text, "victim").splitlines()[0]
                assert "vCPU 0" in about(text, "victim")
                terminal.press(b"q")
                assert await terminal.ended() == 0
            assert termios.tcgetattr(terminal.theirs) == terminal.attributes
            assert terminal.output.endswith("\x1b[?25h")  # the cursor is back
            for screen in terminal.screens:
                assert max(map(len, screen)) <= WIDTH
                assert len(screen) <= HEIGHT


async def test_hung_guest_holds_nobody_up(qemu_path: Path, tmp_path: Path) -> None:
    async with (
        running(qemu_path, tmp_path / "hung.qmp") as hung,
        running(qemu_path, tmp_path / "other.qmp") as other,
    ):
        pid = hung.machine.pid
        assert pid is not None
        async with documents(hung.socket, other.socket, "--interval", "0.2") as found:
            await _next_with(found, (hung, "seen"))
            os.kill(pid, signal.SIGSTOP)
            try:
                # Would it hold up the other, none came within the seconds that an answer may take.
                # A host that has much else to do holds up some.
                times, shortest = [0.0], math.inf
                while len(times) < 10 or shortest > 1:
                    document = await _next_with(found, (hung, "silent"), (other, "seen"))
                    times.append(document["time"])
                    shortest = min(shortest, times[-1] - times[-2])
                assert guest_of(document, hung)["problem"] == "it does not answer"
                assert guest_of(document, hung)["seconds_since"] > 1
            finally:
                os.kill(pid, signal.SIGCONT)
            await _next_with(found, (hung, "seen"))


async def _next_with(
    documents: AsyncIterator[dict[str, Any]], *wanted: tuple[Guest, str]
) -> dict[str, Any]:
    """The next document in which those guests are so: any may be late on a busy host."""
    async for document in documents:
        if all(guest_of(document, guest)["presence"] == how for guest, how in wanted):
            return document
    raise AssertionError("it has ended")


async def test_monitor_that_another_client_holds(qemu_path: Path, tmp_path: Path) -> None:
    async with running(qemu_path, tmp_path / "guest.qmp") as guest:
        holder = await Monitor.connect(guest.socket)
        try:
            with Terminal(guest.socket, "--interval", "0.2") as terminal:
                text = await terminal.until(lambda text: "another may hold it" in text)
                assert "no answer for " in text
                await holder.close()
                await terminal.until(lambda text: "running" in text)
                terminal.press(b"q")
                assert await terminal.ended() == 0
        finally:
            await holder.close()


async def test_terminal_is_given_back(qemu_path: Path, tmp_path: Path) -> None:
    """By Ctrl-Z, and by Ctrl-C, which is a good end."""
    async with running(qemu_path, tmp_path / "guest.qmp") as guest:
        with Terminal(guest.socket, "--interval", "0.2") as terminal:
            await terminal.until(lambda text: "running" in text)
            assert termios.tcgetattr(terminal.theirs) != terminal.attributes
            terminal.press(b"\x1a")
            await asyncio.to_thread(_wait_stopped, terminal.process.pid)
            assert termios.tcgetattr(terminal.theirs) == terminal.attributes
            terminal.read()
            assert terminal.output.endswith("\x1b[?25h")
            terminal.process.send_signal(signal.SIGCONT)
            await terminal.until(lambda text: "running" in text)
            terminal.press(b"\x1bOQ")  # F2 is no q
            await terminal.until(lambda text: "running" in text)
            terminal.press(b"\x03")
            assert await terminal.ended() == 0
            assert termios.tcgetattr(terminal.theirs) == terminal.attributes


def _wait_stopped(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    wait_until(
        lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"process {pid} is stopped"
    )


async def test_dumb_terminal_and_count(qemu_path: Path, tmp_path: Path) -> None:
    async with running(qemu_path, tmp_path / "guest.qmp") as guest:
        arguments = (guest.socket, "--count", "3", "--interval", "0.2")
        with Terminal(*arguments, term="dumb") as terminal:
            assert await terminal.ended() == 0
            assert "\x1b" not in terminal.output
            assert terminal.output.count("running") == 3
        with Terminal(*arguments) as terminal:
            assert await terminal.ended() == 0
            assert len(terminal.screens) >= 3
        assert (await run(*arguments)).stdout.count("running") == 3


async def test_guests_are_only_asked(any_binary: Path, tmp_path: Path) -> None:
    """QEMU's own trace of the commands that it was given."""
    trace = ("qmp_enter_*",)
    async with running(any_binary, tmp_path / "guest.qmp", trace=trace) as guest:
        before = len(guest.machine.text("log"))
        await run(guest.socket, "--json", "--count", "3", "--interval", "0.2")
        asked = set(re.findall(r"qmp_enter_(\w+)", guest.machine.text("log")[before:]))
        status = await commands.query_status(guest.machine.monitor)
    queries = {name for name in asked if name.startswith(("query_", "x_query_"))}
    assert {"query_status", "query_migrate"} <= queries
    # The two of query_tracking: the first looks an address up, the second is for vCPU -1.
    harmless = {"qmp_capabilities", "human_monitor_command", "cancel_vcpu_dirty_limit"}
    assert asked - queries <= harmless
    assert status.running


@pytest.fixture(params=["distribution", pytest.param("patched", marks=pytest.mark.build)])
def any_binary(request: pytest.FixtureRequest) -> Path:
    name = "qemu_path" if request.param == "distribution" else "patched_qemu"
    path = request.getfixturevalue(name)
    assert isinstance(path, Path)
    return path


async def test_nobody_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.qmp"
    done = await run(missing, "--interval", "0.1", expect=2)
    assert "not there" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "no guest was seen" in done.stderr
    assert "is QEMU running" in done.stderr
    done = await run(missing, "--interval", "0.1", "--once", "--json", expect=2)
    (guest,) = json.loads(done.stdout)["guests"]
    assert guest["presence"] == "gone"


async def test_library_example_of_the_page(qemu_path: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    async with running(qemu_path, tmp_path / "guest.qmp") as guest:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", example, str(guest.socket), "/no/such"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{guest.socket} seen running\n/no/such gone None\n"
