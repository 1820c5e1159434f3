"""Where a result comes from: host, KVM, QEMU and its patches, command lines, versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qemu_ring import __version__
from qemu_ring.errors import HostError
from qemu_ring.experiment.plan.inputs import file_sha256
from qemu_ring.machine import Machine, probe_host, probe_kvm, probe_qemu

__all__ = ["command_lines", "images", "provenance"]


async def provenance(binary: Path) -> dict[str, Any]:
    """Everything but what is known of guests that run: command lines, images.

    Raises:
        QemuRingError: the QEMU cannot be asked.
    """
    try:
        kvm = (await asyncio.to_thread(probe_kvm)).as_dict()
    except HostError:
        kvm = None
    qemu = (await probe_qemu(binary)).as_dict()
    return {
        "host": probe_host().as_dict(),
        "kvm": kvm,
        "qemu": {**qemu, "build": await asyncio.to_thread(_manifest, binary)},
        "command_lines": [],
        "images": {},
        "versions": {
            "qemu-ring": __version__,
            "qemu.qmp": version("qemu.qmp"),
            "python": platform.python_version(),
        },
    }


def _manifest(binary: Path) -> dict[str, Any] | None:
    """What `qemu-ring build` noted beside a QEMU that it made: source, patches, options."""
    try:
        found = json.loads(binary.resolve().with_name("manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def command_lines(machines: Sequence[Machine]) -> list[str]:
    """As the kernel has them; of those that run."""
    lines = []
    for machine in machines:
        try:
            words = Path(f"/proc/{machine.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        lines.append(shlex.join(word.decode(errors="replace") for word in words[:-1]))
    return lines


def images(machine: Machine) -> dict[str, dict[str, str | None]]:
    """What a guest was booted from, by kind: path (None for our own firmware), and sha256."""
    started_from = machine.description
    assert started_from is not None  # it was not attached to
    found: dict[str, dict[str, str | None]] = {}
    for kind in ("firmware", "kernel", "initrd"):
        image = getattr(started_from, kind)
        if isinstance(image, bytes):
            found[kind] = {"path": None, "sha256": hashlib.sha256(image).hexdigest()}
        elif image is not None:
            found[kind] = {"path": str(image), "sha256": file_sha256(image)}
    return found
