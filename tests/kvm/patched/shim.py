"""A patched QEMU whose kernel gives other answers than this one's would."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")


@dataclass(frozen=True)
class ShimmedQemu:
    """A program that is QEMU with shim.c between it and the kernel.

    Args:
        path: it.
        directory: where `shim.c` looks for what it is to do.
    """

    path: Path
    directory: Path

    @classmethod
    def make(cls, qemu: Path, directory: Path, *told: str) -> ShimmedQemu:
        """Compile it; `told` is what it does from the beginning."""
        library = directory / "shim.so"
        command: list[str | Path] = ["cc", "-shared", "-fPIC", "-Wall", "-U_FORTIFY_SOURCE", "-o"]
        subprocess.run([*command, library, _SOURCE], check=True, timeout=60)
        path = directory / "qemu-system-x86_64"
        exports = f"LD_PRELOAD={shlex.quote(str(library))} SHIM={shlex.quote(str(directory))}"
        path.write_text(f'#!/bin/sh\n{exports} exec {shlex.quote(str(qemu))} "$@"\n')
        path.chmod(0o755)
        shimmed = cls(path, directory)
        for name in told:
            shimmed.begin(name)
        return shimmed

    def begin(self, what: str) -> None:
        """From now on, do what `shim.c` knows by this name."""
        (self.directory / what).touch()

    def end(self, what: str) -> None:
        """Be the real kernel again."""
        (self.directory / what).unlink()
