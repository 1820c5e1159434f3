"""All outcomes as a table."""

from __future__ import annotations

from tests.kvm.migration.faults.fault import Kind, Phase
from tests.kvm.migration.faults.outcome import Outcome

__all__ = ["table"]


def row(cells: list[str], widths: list[int]) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def table(outcomes: list[Outcome]) -> str:
    """One line for each phase and fault, all channels and QEMUs together."""
    groups: dict[tuple[Phase, Kind], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.fault.phase, one.fault.kind), []).append(one)

    def counted(values: list[str]) -> str:
        different = sorted(set(values))
        if len(different) == 1:
            return different[0]
        return ", ".join(f"{value} {values.count(value)}" for value in different)

    heads = ["phase", "fault", "times", "guest at", "reported", "slowest s", "wrong", "left behind"]
    rows, order = [heads], list(Phase)
    for (phase, kind), ones in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        rows.append(
            [
                phase.value,
                kind.value,
                str(len(ones)),
                counted([one.guest_at.value for one in ones]),
                counted([one.reported for one in ones]),
                f"{max(one.seconds for one in ones):.2f}",
                str(sum(bool(one.wrong) for one in ones)),
                str(sum(bool(one.left) for one in ones)),
            ]
        )
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    return "\n".join(row(line, widths) for line in rows)
