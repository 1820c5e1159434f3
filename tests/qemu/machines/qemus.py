"""QEMUs as users start them: by a command line, with sockets that have names."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from qemu_ring.machine.process import ChildProcess
from qemu_ring.qmp import ConnectError, Monitor, commands
from tests.qemu.machines.parts import Site
from tests.qemu.machines.qtest import Qtest
from tests.waiting import DEADLINE, until


class Qemu:
    """A QEMU that runs: `controller` is the monitor for who migrates it, `monitor` the test's own.

    Made by `start`; ended by the stack that it was given.
    """

    def __init__(self, site: Site, process: ChildProcess, monitor: Monitor, qtest: Qtest) -> None:
        self.site = site
        self.monitor = monitor
        self.qtest = qtest
        self._process = process

    @classmethod
    async def start(
        cls, stack: AsyncExitStack, binary: Path, site: Site, arguments: list[str]
    ) -> Qemu:
        sockets = {name: site.folder / name for name in ("controller", "monitor", "qtest")}
        words = [str(binary), *arguments, "-nodefaults", "-display", "none"]
        words += ["-qmp", f"unix:{sockets['controller']},server=on,wait=off"]
        words += ["-qmp", f"unix:{sockets['monitor']},server=on,wait=off"]
        words += ["-qtest", f"unix:{sockets['qtest']},server=on,wait=off", "-qtest-log", "none"]
        words += ["-serial", f"file:{site.folder / 'serial'}"]
        process = ChildProcess.start(words)
        stack.callback(process.close)
        stack.push_async_callback(process.stop)

        async def connected() -> Monitor | None:  # a socket is there before somebody listens
            assert process.returncode is None, process.output()
            with suppress(ConnectError):
                return await Monitor.connect(sockets["monitor"], timeout=DEADLINE)
            return None

        monitor = await until(connected, "QEMU listens")
        assert monitor is not None
        stack.push_async_callback(monitor.close)
        qtest = await Qtest.connect(sockets["qtest"])
        stack.push_async_callback(qtest.close)
        return cls(site, process, monitor, qtest)

    @property
    def controller(self) -> Path:
        """Where whoever migrates it finds its monitor."""
        return self.site.folder / "controller"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._process.output()

    @property
    def serial(self) -> str:
        return (self.site.folder / "serial").read_text(errors="replace")

    async def end(self) -> str:
        """End it, so that it writes what it still holds back; returns its output."""
        await self._process.stop(timeout=30)
        return self.output

    async def words(self, address: int, count: int, size: str = "g") -> list[int]:
        """Words of guest-physical memory, of 4 (`w`) or 8 (`g`) bytes."""
        text = await commands.human(self.monitor, f"xp /{count}x{size} {address:#x}", timeout=60)
        return [int(word, 16) for line in text.splitlines() for word in _WORD.findall(line)]

    async def memory(self, start: int, size: int) -> bytes:
        """Guest-physical memory, as QEMU itself has it; the guest should be stopped."""
        path = self.site.folder / "dump"
        arguments = {"val": start, "size": size, "filename": str(path)}
        await self.monitor.execute("pmemsave", arguments, timeout=120)
        content = await asyncio.to_thread(path.read_bytes)
        path.unlink()
        return content

    async def run(self) -> None:
        """Let the guest go on, if it does not."""
        if not (await commands.query_status(self.monitor, timeout=60)).running:
            await commands.cont(self.monitor, timeout=60)


_WORD = re.compile(r"(?<=[ :])0x([0-9a-f]+)")


async def make_images(binary: Path, folder: Path, size: int) -> None:
    """An empty disk image of each format, made by QEMU itself."""
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    for path, length in ((raw, size), (qcow2, 0)):
        path.touch()
        os.truncate(path, length)
    async with AsyncExitStack() as stack:
        site = Site(folder, folder, 0, "")
        qemu = await Qemu.start(stack, binary, site, ["-machine", "none"])
        file = {"driver": "file", "filename": str(qcow2), "node-name": "file"}
        await qemu.monitor.execute("blockdev-add", file)
        options = {"driver": "qcow2", "file": "file", "size": size}
        with qemu.monitor.events("JOB_STATUS_CHANGE") as events:
            await qemu.monitor.execute("blockdev-create", {"job-id": "new", "options": options})
            while (await events.wait(timeout=60)).data["status"] != "concluded":
                pass
        jobs = await qemu.monitor.execute("query-jobs")
        assert isinstance(jobs, list)
        assert "error" not in jobs[0], jobs
        await qemu.monitor.execute("job-dismiss", {"id": "new"})
