"""What to build, what a build has got to, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qemu_ring.build.debian import SUITES
from qemu_ring.build.patches import PARTS
from qemu_ring.errors import FieldError

__all__ = ["BuildOptions", "BuildProgress", "BuiltQemu", "Manifest", "OnProgress"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build.

    Args:
        source: an unpacked QEMU source, which is only read, or a tarball of one; None for
            Debian's, which apt fetches.
        version: of Debian's QEMU, "7.2" (Debian 12) or "10.0" (Debian 13); None for "10.0". A
            `source` tells its own.
        jobs: compilers at a time; None for one a CPU.
        debug: with QEMU's own debug checks and without optimisation.
        cache: directory for what is fetched and built; None for qemu-ring in
            $XDG_CACHE_HOME.
        patches: directory of patch series; None for those that this package ships.
        part: how far the series is applied: "fixes", "flush", "ring" or "lab", which is all of it.

    Raises:
        UsageError: `jobs` is less than 1, there is no such part or version, or `source` and
            `version` are both given.
    """

    source: Path | None = None
    jobs: int | None = None
    debug: bool = False
    cache: Path | None = None
    patches: Path | None = None
    part: str = PARTS[-1]
    version: str | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise FieldError("jobs", f"is at least 1, not {self.jobs}")
        if self.version is not None and self.version not in SUITES:
            raise FieldError(
                "version",
                f"is {' or '.join(SUITES)}, not {self.version}",
                hint="of another, name a source",
            )
        if self.version is not None and self.source is not None:
            raise FieldError(
                "version",
                "is of Debian's source, and another is named",
                hint="leave one of the two out",
            )
        if self.part not in PARTS:
            raise FieldError("part", f"is one of {', '.join(PARTS)}, not {self.part}")


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build is.

    Args:
        stage: what it does, such as "compiling".
        done: how much of it is done.
        total: of how much; 0 where that is not known.
    """

    stage: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a built QEMU was made of.

    Args:
        version: QEMU's, such as "10.0.13".
        source: the source's path, or the name of the tarball that Debian has.
        source_sha256: see `qemu_ring.build.Source`.
        series: version that the patches are for.
        patches: names of those applied.
        patches_sha256: over the series.
        configure: options for QEMU's configure; it is given those that it knows.
        debug: whether it is a build for debugging.
        compiler: its name and version.
        libc: the C library's name and version.
        sha256: of the binary.
        size: of the binary, bytes.
        built: when it was done, in seconds since 1970.
        seconds: how long it took.
        part: how far the series was applied; see `BuildOptions`.
    """

    version: str
    source: str
    source_sha256: str
    series: str
    patches: list[str]
    patches_sha256: str
    configure: list[str]
    debug: bool
    compiler: str
    libc: str
    sha256: str
    size: int
    built: float
    seconds: float
    part: str = PARTS[-1]
    schema: dict[str, object] = field(
        default_factory=lambda: {"name": "qemu-ring.manifest", "version": 1}
    )

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, text: str) -> Manifest:
        """Read what `dump` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError("no manifest of this version") from error


@dataclass(frozen=True, slots=True)
class BuiltQemu:
    """A QEMU in the cache.

    Args:
        path: the binary.
        manifest: what it was made of; beside it in `manifest.json`.
        cached: whether an earlier call built it.
    """

    path: Path
    manifest: Manifest
    cached: bool
