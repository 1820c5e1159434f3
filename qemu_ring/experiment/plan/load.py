"""An experiment from its file: parsed, checked, each mistake named with file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from qemu_ring.errors import UsageError
from qemu_ring.experiment.errors import ExperimentFileError
from qemu_ring.experiment.plan.cells import ExperimentPlan
from qemu_ring.experiment.plan.columns import RESERVED
from qemu_ring.experiment.plan.matrix import MatrixError, combinations
from qemu_ring.experiment.plan.resolve import CellResolver
from qemu_ring.experiment.plan.schema import CellPart, PlanPart
from qemu_ring.guestfile import GuestFileError
from qemu_ring.guestfile.mistakes import mistakes
from qemu_ring.guestfile.source import Path as DocumentPath
from qemu_ring.guestfile.source import YamlSource

__all__ = ["load_experiment", "parse_experiment"]

Problem = tuple[DocumentPath, str]
_MOST_RUNS = 1_000_000


def load_experiment(path: str | Path) -> ExperimentPlan:
    """Read an experiment from a YAML file.

    Raises:
        ExperimentFileError: it cannot be right; its `problems` are one line each.
        UsageError: the file cannot be read.
    """
    text = _read(Path(path), str(path))
    return parse_experiment(text, name=str(path), directory=Path(path).absolute().parent)


def parse_experiment(
    text: str, *, name: str = "experiment.yaml", directory: Path | None = None
) -> ExperimentPlan:
    """The same from a text.

    Args:
        text: YAML.
        name: of its file, for messages, and for an experiment that has no name.
        directory: what relative paths are seen from; None for the current one.

    Raises:
        ExperimentFileError: as in `load_experiment`.
    """
    directory = (directory or Path()).absolute()
    try:
        document = YamlSource.parse(text, name)
    except GuestFileError as error:
        words = "an experiment is a mapping, with a guest and a matrix"
        raise ExperimentFileError(
            [
                one.replace("a guest is a mapping, such as `memory: 64 MiB`", words)
                for one in error.problems
            ]
        ) from None
    for key in [key for key in document.data if key.startswith("x-")]:
        del document.data[key]  # a place for anchors
    part = _plan_part(document)
    taken = [
        key for key in part.matrix if key in RESERVED and key.split(".")[0] not in _cell_keys()
    ]
    if taken:
        said = "is a column of the results; choose another word"
        raise _wrong(document, [(("matrix", key), said) for key in taken])
    try:
        wanted = combinations(part.matrix, part.include, part.exclude, _cell_keys())
    except MatrixError as error:
        raise _wrong(document, [(error.path, error.message)]) from None
    resolver = CellResolver(document, directory)
    cells = [resolver.cell(one) for one in wanted]
    if resolver.problems:
        raise ExperimentFileError(list(dict.fromkeys(resolver.problems)))
    runs = len(cells) * (part.repeats + part.warm_up)
    if runs > _MOST_RUNS:
        said = f"makes {runs:,} runs; {_MOST_RUNS:,} are the most that can be"
        raise _wrong(document, [(("repeats",), said)])
    return ExperimentPlan(
        name=part.name or Path(name).stem,
        description=part.description,
        source=text,
        cells=tuple(cell for cell in cells if cell is not None),
        repeats=part.repeats,
        warm_up=part.warm_up,
        seed=part.seed,
        order=part.order,
        stop=part.stop.model_dump(by_alias=True, exclude_none=True),
    )


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExperimentFileError([f"{name}:1: no YAML: it is not UTF-8"]) from error


def _cell_keys() -> list[str]:
    return ["guest", *(field.alias or name for name, field in CellPart.model_fields.items())]


def _wrong(document: YamlSource, problems: Sequence[Problem]) -> ExperimentFileError:
    return ExperimentFileError(document.error(problems).problems)


def _plan_part(document: YamlSource) -> PlanPart:
    """What is not part of a cell; keys that nothing knows are found here."""
    cell_keys = _cell_keys()
    data = {key: value for key, value in document.data.items() if key not in cell_keys}
    try:
        return PlanPart.model_validate(data)
    except ValidationError as error:
        found = [
            (path, f"{text}, {', '.join(cell_keys)}" if text.startswith("unknown key") else text)
            for path, text in mistakes(error, data, PlanPart)
        ]
        raise _wrong(document, found) from None
