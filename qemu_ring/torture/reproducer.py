"""A program that failed, as a file that can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qemu_ring.dirty import Tracking
from qemu_ring.errors import UsageError
from qemu_ring.memslot import FlushPolicy
from qemu_ring.torture.finding import FindingKind, TortureFinding
from qemu_ring.torture.options import MAX_TORTURED_VCPUS, TortureOptions
from qemu_ring.torture.steps import Program, Step

__all__ = ["Reproducer"]

_NAME: Final = "qemu-ring.torture-program"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["qemu-ring.torture-program"] = _NAME
    version: Literal[1] = 1


class Reproducer(BaseModel):
    """What was played, of what, and what was found.

    Args:
        format: name and version; "schema" in the file.
        qemu: the version it was found with.
        tracking: how dirty pages were tracked, as `Tracking.parse` reads it.
        policy: how memslots were removed; None for what the QEMU does by itself.
        vcpus: how many.
        seed: of the torture that it is of.
        kind, message: what was found.
        steps: the program.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: _Schema = Field(default=_Schema(), alias="schema")
    qemu: str
    tracking: str
    policy: FlushPolicy | None
    vcpus: int = Field(ge=1, le=MAX_TORTURED_VCPUS)
    seed: int
    kind: FindingKind
    message: str
    steps: tuple[Annotated[Step, Field(discriminator="do")], ...] = Field(min_length=1)

    @classmethod
    def of(
        cls, options: TortureOptions, qemu: str, finding: TortureFinding, program: Program
    ) -> Reproducer:
        """What a torture found."""
        return cls(
            qemu=qemu,
            tracking=str(options.tracking),
            policy=options.policy,
            vcpus=options.vcpus,
            seed=options.seed,
            kind=finding.kind,
            message=finding.message,
            steps=program,
        )

    def options(
        self, policy: FlushPolicy | None = None, log_directory: Path | None = None
    ) -> TortureOptions:
        """How to play it; `policy` in place of its own."""
        return TortureOptions(
            seed=self.seed,
            tracking=Tracking.parse(self.tracking),
            policy=policy or self.policy,
            vcpus=self.vcpus,
            log_directory=log_directory,
        )

    @classmethod
    def load(cls, path: Path) -> Reproducer:
        """Read it from a file.

        Raises:
            UsageError: it cannot be read, or is none.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(
                f"{path} is no JSON: {error}", hint="name what torture wrote"
            ) from error
        try:
            found = cls.model_validate(document)
            Tracking.parse(found.tracking)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"{path} is no program of torture: {where}: {first['msg']}",
                hint="name what torture wrote",
            ) from error
        return found

    def save(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            UsageError: it cannot be written.
        """
        document = self.model_dump(mode="json", by_alias=True)
        steps = ",\n    ".join(json.dumps(step) for step in document.pop("steps"))
        head = json.dumps(document, indent=2).removesuffix("\n}")
        try:
            path.write_text(f'{head},\n  "steps": [\n    {steps}\n  ]\n}}\n', encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
