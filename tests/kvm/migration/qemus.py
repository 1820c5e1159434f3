"""Two QEMUs as a user starts them, without this package: a guest that writes, and its twin."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes
from tests.waiting import DEADLINE, wait_until

__all__ = ["Qemus"]

MIB = 1 << 20
RAM = 40 * MIB


class Qemus:
    """A guest that writes, and its twin, each with a QMP socket and memory with a name."""

    def __init__(
        self,
        folder: Path,
        binary: Path,
        *,
        memory_folder: Path | None = None,
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
        self.processes = []
        for name, more in (("source", []), ("twin", ["-incoming", "defer", *extra_twin])):
            path = memory_folder or folder / f"{name}.ram"  # in a folder it has no name
            memory = f"memory-backend-file,id=ram,share=on,size={RAM}B,mem-path={path}"
            monitor = f"unix:{folder / name}.qmp,server=on,wait=off"
            self.processes.append(
                subprocess.Popen(
                    [*through, str(binary), *common, "-object", memory, "-qmp", monitor, *more],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        sockets = [Path(self.source), Path(self.destination)]
        wait_until(lambda: all(path.exists() for path in sockets), "both QEMUs have started")

    def assert_alive(self) -> None:
        assert [process.poll() for process in self.processes] == [None, None]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout=DEADLINE)
