"""The patches that this package ships: a series for each QEMU version, and how one is applied.

A series has parts, which are folders, and each stands on those before it: `fixes` of defects that
upstream has as well, `flush` with the policies for the removal of memslots, `ring` that makes a
migration by dirty ring send less, and `lab` with what a laboratory needs to look at them. A series
may lack a part.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from qemu_ring.errors import BuildError, HostError, UsageError
from qemu_ring.programs import Runner

__all__ = ["PARTS", "Patches", "Series"]

PARTS = ("fixes", "flush", "ring", "lab")
"""In the order in which they are applied."""

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = [_PACKAGE / "patches", _PACKAGE.parent / "patches"]  # a wheel's, a checkout's
_FAILED = re.compile(r"Hunk #(\d+) FAILED at")
_FILE = re.compile(r"(?:checking|patching) file '?(.*?)'?$")


@dataclass(frozen=True, slots=True)
class Series:
    """Patches for one QEMU version.

    Args:
        version: such as "10.0".
        patches: in the order in which they are applied.
        sha256: over all that, in hex.
        part: the last one of `PARTS` that is in it.
    """

    version: str
    patches: tuple[Path, ...]
    sha256: str
    part: str = PARTS[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of `PARTS` that are in it."""
        found = {patch.parent.name for patch in self.patches}
        return tuple(part for part in PARTS if part in found)

    def up_to(self, part: str) -> Series:
        """The series without the parts behind one of `PARTS`.

        Raises:
            UsageError: it has no such part.
        """
        if part == self.part:
            return self
        if part not in self.parts:
            raise UsageError(
                f"the series for QEMU {self.version} has no part {part}",
                hint=f"it has {', '.join(self.parts)}",
            )
        kept = PARTS[: PARTS.index(part) + 1]
        patches = tuple(patch for patch in self.patches if patch.parent.name in kept)
        return replace(self, patches=patches, sha256=_digest(self.version, patches), part=part)

    async def apply(self, tree: Path, runner: Runner) -> None:
        """Change an unpacked source tree.

        Raises:
            BuildError: a patch does not apply; the message names it and its hunk.
        """
        for patch in self.patches:
            lines: list[str] = []
            try:
                await runner.run(
                    f"applying {patch.name}",
                    *("patch", "-p1", "--forward", "--fuzz=0", "--batch"),
                    *("--no-backup-if-mismatch", "-i", patch),
                    cwd=tree,
                    timeout=60,
                    on_line=lines.append,
                )
            except BuildError as error:
                raise BuildError(
                    f"{patch.name} does not apply: {_why(lines)}",
                    hint=f"the series is for QEMU {self.version}; the full log is {runner.log}",
                ) from error


@dataclass(frozen=True, slots=True)
class Patches:
    """All series of a directory `patches`.

    Args:
        series: by QEMU version.
    """

    series: dict[str, Series]

    @classmethod
    def load(cls, directory: Path | None = None) -> Patches:
        """Read them.

        Args:
            directory: with qemu-VERSION/series in it; None for what this package ships.

        Raises:
            HostError: there is none, or a patch is missing.
        """
        for place in [directory] if directory else _PLACES:
            files = sorted(place.glob("qemu-*/series"))
            if files:
                break
        else:
            raise HostError(
                f"there is no patch series in {place}", hint="install qemu-ring again, whole"
            )
        series = [_read(file) for file in files]
        return cls({one.version: one for one in series})

    def for_version(self, version: str) -> Series:
        """The series for a QEMU version, such as "10.0.13".

        Raises:
            UsageError: there is none.
        """
        series = self.series.get(".".join(version.split(".")[:2]))
        if series is None:
            known = " and ".join(f"{version}.x" for version in self.series)
            raise UsageError(
                f"there are no patches for QEMU {version}, only for {known}",
                hint="name another source, a tarball or a directory",
            )
        return series


def _read(file: Path) -> Series:
    """Read a series file, and its patches for their hash."""
    version = file.parent.name.removeprefix("qemu-")
    patches = tuple(file.parent / name for name in _names(file.read_text()))
    return Series(version, patches, _digest(version, patches))


def _digest(version: str, patches: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for patch in patches:
        try:
            content = patch.read_bytes()
        except OSError as error:
            hint = "see the file named series beside it"
            raise HostError(f"{patch}: {error.strerror}", hint=hint) from error
        digest.update(f"{version}/{patch.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _names(series: str) -> list[str]:
    """The patches that a series file lists, in quilt's format."""
    lines = (line.partition("#")[0].split() for line in series.splitlines())
    return [words[0] for words in lines if words]


def _why(lines: list[str]) -> str:
    """What patch(1) had against a patch, in one line."""
    file = ""
    for line in lines:
        if named := _FILE.match(line):
            file = named[1]
        elif failed := _FAILED.match(line):
            return f"hunk {failed[1]} of {file}"
        elif "previously applied" in line:
            return f"it is applied already, or part of it: {file}"
    said = [line.strip() for line in lines if line.strip()]
    return next(
        (line for line in said if "can't find file" in line or "malformed" in line), ""
    ) or (" | ".join(said[-2:]) or "patch(1) said nothing")
