"""Few combinations in which all pairs (or triples) of values occur.

The combinations are too many to choose among (tests/tiers.py does that), so they are made. By
ourselves, because allpairspy leaves out allowed pairs where others are forbidden, and a fourth of
the triples where none are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations, product
from typing import TypeVar

Value = TypeVar("Value", bound=Hashable)
Partial = Mapping[str, Value]
_CANDIDATES = {2: 8}
"""By strength, combinations to choose the next one from: more make fewer, and take longer."""


def covering(
    axes: Mapping[str, Sequence[Value]],
    allowed: Callable[[Partial[Value]], bool],
    *,
    strength: int = 2,
) -> list[dict[str, Value]]:
    """Combinations, the same ones each time, in which every possible tuple of values occurs.

    Args:
        axes: values to choose from, by axis.
        allowed: whether a choice for some of the axes may be made; more choices make nothing
            allowed that was not.
        strength: 2 for pairs, 3 for triples.
    """
    dice = random.Random(strength)
    missing = dict.fromkeys(tuples(axes, strength))
    found = []
    while missing:
        target = next(iter(missing))
        tried = [_filled(axes, allowed, missing, dict(target), strength, dice)]
        tried += [
            _filled(axes, allowed, missing, dict(target), strength, dice)
            for _ in range(_CANDIDATES.get(strength, 1) - 1)
            if tried[0] is not None
        ]
        best = max(
            (one for one in tried if one is not None),
            key=lambda one: sum(part in missing for part in parts(one, strength)),
            default=None,
        )
        if best is None:  # it is not possible
            del missing[target]
            continue
        for part in parts(best, strength):
            missing.pop(part, None)
        found.append({axis: best[axis] for axis in axes})
    return found


Tuple = tuple[tuple[str, Value], ...]


def tuples(axes: Mapping[str, Sequence[Value]], strength: int) -> list[Tuple[Value]]:
    """All tuples of values of different axes."""
    return [
        tuple(zip(names, values, strict=True))
        for names in combinations(sorted(axes), strength)
        for values in product(*(axes[name] for name in names))
    ]


def parts(combination: Partial[Value], strength: int) -> list[Tuple[Value]]:
    """The tuples that occur in a combination."""
    return list(combinations(sorted(combination.items(), key=lambda item: item[0]), strength))


def _filled(
    axes: Mapping[str, Sequence[Value]],
    allowed: Callable[[Partial[Value]], bool],
    missing: Mapping[Tuple[Value], None],
    chosen: dict[str, Value],
    strength: int,
    dice: random.Random,
) -> dict[str, Value] | None:
    """Choose for the axes that are left, each time what adds most; None if nothing is allowed."""
    if not allowed(chosen):
        return None
    rest = [axis for axis in axes if axis not in chosen]
    dice.shuffle(rest)
    for axis in rest:
        others = list(combinations(sorted(chosen.items(), key=lambda item: item[0]), strength - 1))

        def gain(value: Value, axis: str = axis, others: list[Tuple[Value]] = others) -> int:
            pairs = (
                tuple(sorted((*one, (axis, value)), key=lambda item: item[0])) for one in others
            )
            return sum(pair in missing for pair in pairs)

        values = [value for value in axes[axis] if allowed({**chosen, axis: value})]
        if not values:
            return None
        dice.shuffle(values)
        chosen[axis] = max(values, key=gain)
    return chosen
