"""Guests to look at, `qemu-ring top` run on them, and a terminal for it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_ring._compat import timeout
from qemu_ring.dirty import Tracking
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.memslot import PciAddress, PciSlots, SlotDevice
from tests.command import COMMAND
from tests.waiting import DEADLINE

MIB = 1 << 20
RAM = 48 * MIB
TOP = [*COMMAND, "top"]
WIDTH, HEIGHT = 80, 24


@dataclass
class Guest:
    machine: Machine
    socket: Path
    slots: PciSlots
    control: WorkloadControl | None = None  # of a guest that runs


@asynccontextmanager
async def running(
    binary: Path,
    socket: Path,
    *,
    tracking: str = "ring:4096",
    pages_per_second: float = 5000,
    incoming: bool = False,
    trace: tuple[str, ...] = (),
) -> AsyncIterator[Guest]:
    """A guest, named as its socket, that loops over 32 MiB and has two slots to be removed."""
    region = Region("memory", 16 * MIB, 32 * MIB)
    whole = Workload((region,), (Stream(),)).span("memory")
    load = Workload((region,), (Stream(Pattern.LOOP, whole, pages_per_second=pages_per_second),))
    tsc_hz = probe_kvm().tsc_khz * 1000
    async with AsyncExitStack() as stack:
        files = {
            name: stack.enter_context(UnnamedFile(name, size))
            for name, size in (("ram", RAM), ("a", MIB), ("b", MIB))
        }
        devices = [
            SlotDevice(MemoryBackend(name, files[name]), PciAddress(number))
            for number, name in ((4, "a"), (5, "b"))
        ]
        description = MachineDescription(
            accelerator=Tracking.parse(tracking).accelerator(await probe_qemu(binary)),
            memory=MemoryBackend("ram", files["ram"]),
            backends=tuple(device.backend for device in devices),
            devices=tuple(device.device() for device in devices),
            firmware=image_bytes(),
            fw_cfg=load.fw_cfg(tsc_hz),
            incoming="defer" if incoming else None,
            paused=incoming,
            trace=trace,
            extra=("-name", socket.stem, "-qmp", f"unix:{socket},server=on,wait=off"),
        )
        machine = await stack.enter_async_context(await Machine.start(binary, description))
        slots = PciSlots(machine.monitor, devices)
        control = None
        if not incoming:
            control = stack.enter_context(WorkloadControl(files["ram"].fd, load, tsc_hz))
            await control.wait_writing()
            for number, device in enumerate(devices, 1):
                await slots.add(device.name, number << 30)
        yield Guest(machine, socket, slots, control)


async def run(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [*TOP, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == expect, done.stderr
    return done


@asynccontextmanager
async def documents(*arguments: object) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The documents of `top --json`, as they come."""
    process = await asyncio.create_subprocess_exec(
        *TOP,
        "--json",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )

    async def read() -> AsyncIterator[dict[str, Any]]:
        assert process.stdout is not None
        async for line in process.stdout:
            yield json.loads(line)

    try:
        async with timeout(240):
            yield read()
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            _, stderr = await process.communicate()
        assert process.returncode == 130, stderr
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Terminal:
    """A terminal of 80 columns and 24 lines, on which `top` runs in the foreground."""

    def __init__(self, *arguments: object, term: str = "xterm") -> None:
        self._ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        os.set_blocking(self._ours, False)
        self.attributes = termios.tcgetattr(self.theirs)
        setsid = shutil.which("setsid")
        assert setsid is not None
        self.process = subprocess.Popen(
            [setsid, "--ctty", *TOP, *map(str, arguments)],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**os.environ, "TERM": term},
        )
        self.output = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self.theirs)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ours, 1 << 16):
                self.output += data.decode(errors="replace")

    @property
    def screens(self) -> list[list[str]]:
        """What was on the screen, one after the other; the last may be incomplete."""
        # Rich goes back to the first line by going up and erasing, line by line.
        drawn = re.split(r"\r?(?:\x1b\[2K)?(?:\x1b\[1A\x1b\[2K)+", self.output)
        plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", one).replace("\r", "") for one in drawn]
        return [one.split("\n") for one in plain]

    async def until(self, condition: Callable[[str], bool], seconds: float = DEADLINE) -> str:
        """Wait until a whole screen is so."""
        seen = len(self.screens)
        async with timeout(seconds):
            while True:
                self.read()
                for screen in self.screens[max(seen - 1, 0) : -1]:
                    text = "\n".join(screen)
                    if condition(text):
                        return text
                assert self.process.poll() is None, self.output[-2000:]
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        async with timeout(DEADLINE):
            while self.process.poll() is None:
                self.read()
                await asyncio.sleep(0.01)
        self.read()
        return self.process.returncode


def about(text: str, guest: str) -> str:
    """What a screen says of one guest."""
    return next(part for part in re.split(r"─{80}\n", text) if re.match(rf"\S*{guest}\b", part))


def guest_of(document: dict[str, Any], guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = next(
        one for one in document["guests"] if one["socket"] == str(guest.socket)
    )
    return found
