"""Two QEMUs as a user starts them, without this package: a guest that writes, and its twin."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes
from tests.waiting import DEADLINE, wait_until

__all__ = ["Qemus"]

MIB = 1 << 20
RAM = 40 * MIB


_LISTENS = "00010000"  # __SO_ACCEPTCON


def _listening() -> set[str]:
    """The paths that take connections."""
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    fields = [line.split(maxsplit=7) for line in lines]
    return {one[7] for one in fields if len(one) == 8 and one[3] == _LISTENS}


class Qemus:
    """A guest that writes, and its twin, each with a QMP socket and memory with a name.

    Attributes:
        source, destination: their QMP sockets.
        watches: another one of each, for the test itself.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path,
        *,
        memory: str = "",
        memory_folder: Path | None = None,
        named: bool = False,
        extra: Sequence[str] = (),
        extra_twin: Sequence[str] = (),
        accelerator: str = "kvm",
        through: Sequence[str] = (),
    ) -> None:
        self.source, self.destination = str(folder / "source.qmp"), str(folder / "twin.qmp")
        region = Region("ram", 8 * MIB, 32 * MIB)
        span = Workload((region,), (Stream(),)).span("ram")
        workload = Workload((region,), (Stream(Pattern.LOOP, span, pages_per_second=4000),))
        (folder / "firmware").write_bytes(image_bytes())
        common = ["-accel", accelerator, "-machine", "pc,memory-backend=ram", "-m", f"size={RAM}B"]
        common += ["-nodefaults", "-display", "none", "-bios", str(folder / "firmware")]
        common += extra
        for name, content in workload.fw_cfg(1_000_000_000).items():
            path = folder / name.replace("/", "-")
            path.write_bytes(content)
            common += ["-fw_cfg", f"name={name},file={path}"]
        self.watches = (str(folder / "source.watch"), str(folder / "twin.watch"))
        self._folder, self._memory_folder, self._named = folder, memory_folder, named
        self._kind = memory or "memory-backend-file,share=on,mem-path={path}"
        self.by_tcp: dict[str, tuple[str, int]] = {}
        """Where each has one more monitor."""
        self._line = [*through, str(binary), *common]
        self._twin = ["-incoming", "defer", *extra_twin]
        self.processes = [self._start("source", []), self._start("twin", self._twin)]
        self._wait(self.source, self.destination, *self.watches)

    def renew_twin(self) -> None:
        """End the twin, and start it anew."""
        self.processes[1].kill()
        self.processes[1].wait(timeout=DEADLINE)
        for path in (self.destination, self.watches[1]):
            Path(path).unlink()
        self.processes[1] = self._start("twin", self._twin)
        self._wait(self.destination, self.watches[1])

    def _start(self, name: str, more: Sequence[str]) -> subprocess.Popen[bytes]:
        kind = self._kind.format(path=self._memory(name), folder=self._folder, name=name)
        memory = f"{kind},id=ram,size={RAM}B"
        monitors = [
            argument
            for kind in ("qmp", "watch")
            for argument in ("-qmp", f"unix:{self._folder / name}.{kind},server=on,wait=off")
        ]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.by_tcp[name] = listening.getsockname()
            monitors += ["-chardev", f"socket,id=tcp,fd={listening.fileno()},server=on,wait=off"]
            monitors += ["-mon", "chardev=tcp,mode=control"]
            return subprocess.Popen(
                [*self._line, "-object", memory, *monitors, *more],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )

    def _memory(self, name: str) -> Path:
        """In a folder it has no name, unless it is to."""
        if self._memory_folder is None:
            return self._folder / f"{name}.ram"
        return self._memory_folder / f"{name}.ram" if self._named else self._memory_folder

    @staticmethod
    def _wait(*paths: str) -> None:
        # There, a socket may not listen yet.
        wait_until(lambda: _listening().issuperset(paths), "both QEMUs have started")

    def assert_alive(self) -> None:
        assert [process.poll() for process in self.processes] == [None, None]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout=DEADLINE)
        if self._named:
            for name in ("source", "twin"):
                self._memory(name).unlink(missing_ok=True)
