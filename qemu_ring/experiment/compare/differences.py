"""What differs between A and B besides what was measured: what was asked, and where it was run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from qemu_ring.experiment.plan.cells import Cell
from qemu_ring.experiment.plan.parameters import named_by_parameters
from qemu_ring.experiment.plan.schema import CLEAR_CHUNK
from qemu_ring.experiment.results.record import RunRecord

__all__ = ["provenance_differences", "specification_differences"]

_PROVENANCE: Final = (
    "qemu.version",
    "qemu.sha256",
    "qemu.patched",
    "qemu.build.version",
    "qemu.build.patches",
    "qemu.build.patches_sha256",
    "qemu.build.configure",
    "qemu.build.compiler",
    "host.kernel",
    "host.cpu_model",
    "host.cpus",
    "kvm",
    "versions.qemu-ring",
    "images.firmware.sha256",
    "images.kernel.sha256",
    "images.initrd.sha256",
)
"""What can change a result; of kvm, everything."""
_PASSING = ("kvm.tsc_khz",)  # measured anew by the kernel at each start of the host
_MOST = 4  # values of a side that are told


def specification_differences(
    pairs: Sequence[tuple[Cell, Cell]],
) -> dict[str, tuple[Any, Any]]:
    """What the cells of a pair were asked to do that is not the same, pair by pair.

    Where pairs differ in several ways, a side's value is a list.
    """
    found: dict[str, list[tuple[Any, Any]]] = {}
    for a, b in pairs:
        for key, values in _unlike(_asked(a), _asked(b)):
            told = found.setdefault(key, [])
            if values not in told:
                told.append(values)
    return {
        key: told[0]
        if len(told) == 1
        else tuple(_several(side) for side in zip(*told, strict=True))
        for key, told in found.items()
    }


def provenance_differences(
    a: Iterable[RunRecord], b: Iterable[RunRecord]
) -> dict[str, tuple[Any, Any]]:
    """Where the records of A and those of B come from, as far as it is not the same.

    A side of several values, such as from several hosts, is a list.
    """
    here, there = _sources(a), _sources(b)
    if not here or not there:
        return {}
    return {
        key: (_several(here.get(key, [None])), _several(there.get(key, [None])))
        for key in dict.fromkeys([*here, *there])
        if {repr(one) for one in here.get(key, [None])}
        != {repr(one) for one in there.get(key, [None])}
    }


def _asked(cell: Cell) -> dict[str, Any]:
    """Its parameters, and all of its specification that has no parameter of its own."""
    asked = {"clear_chunk": CLEAR_CHUNK, **cell.parameters}  # older results do not tell it
    specification = {key: value for key, value in cell.specification.items() if key != "directory"}
    return asked | {
        key: value
        for key, value in _flat(specification)
        if key not in asked and named_by_parameters(key) not in asked
    }


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield key, (a.get(key), b.get(key))


def _sources(records: Iterable[RunRecord]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in records:
        for key, value in _flat(record.provenance):
            if _counts(key):
                told = found.setdefault(key, [])
                if value not in told:
                    told.append(value)
    return found


def _counts(key: str) -> bool:
    wanted = any(key == one or key.startswith(f"{one}.") for one in _PROVENANCE)
    return wanted and key not in _PASSING


def _several(values: Iterable[Any]) -> Any:
    told = []
    for one in values:
        if one not in told:
            told.append(one)
    return told[0] if len(told) == 1 else told[:_MOST]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}.")
        elif isinstance(inner, list):
            yield name, ", ".join(map(str, inner))
        else:
            yield name, inner
