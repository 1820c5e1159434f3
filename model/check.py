"""Check the model of memslot removal with Spin: `python -m model.check` prints a table.

Each case is one configuration of `removal.pml` and what is known of it: that no interleaving loses
a dirty bit, or that one does. Spin searches all of them; nothing is sampled.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CASES", "Case", "Verdict", "check"]

MODEL = Path(__file__).with_name("removal.pml")
SECONDS = 600.0
MEMORY_MIB = 4096
DEPTH = 100_000
# Steps that are not the model's own: it is set up by init.
_STEP = re.compile(
    r"^\s*\d+:\s+proc\s+\d+ \((?!:init:)(\w+)[^)]*\) \S+:(\d+) \(state \d+\)\s*\[(.*)\]"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration.

    Attributes:
        name: in a few words.
        options: what is defined for the model, as in "RING POLICY=QUIESCE".
        loses: whether a dirty bit can be lost.
    """

    name: str
    options: str
    loses: bool

    @property
    def defines(self) -> list[str]:
        """The options, for Spin's preprocessor."""
        return [f"-D{option}" for option in self.options.split()]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Spin found.

    Attributes:
        loses: some interleaving loses a dirty bit.
        states: how many states were searched, until the first loss if there is one.
        seconds: how long the search took.
        steps: the interleaving that loses: process, line of the model, statement; else empty.
    """

    loses: bool
    states: int
    seconds: float
    steps: tuple[tuple[str, int, str], ...] = ()


_ONE = "VCPUS=1 WRITES=2"
_TWO = "VCPUS=2 WRITES=1"


def _safe(policy: str, *trackings: str) -> list[Case]:
    return [
        Case(f"{policy.lower().replace('_', '-')}, {name}", f"{name} POLICY={policy} {_ONE}", False)
        for name in trackings
    ]


CASES = [
    # Upstream's order loses by each of the ways in which dirty pages are tracked.
    Case("best-effort, ring", f"RING POLICY=BEST_EFFORT {_ONE}", True),
    Case("best-effort, bitmap", f"BITMAP POLICY=BEST_EFFORT {_ONE}", True),
    Case("best-effort, manual protect", f"BITMAP MANUAL POLICY=BEST_EFFORT {_ONE}", True),
    Case("best-effort, two address spaces", f"RING NAS=2 POLICY=BEST_EFFORT {_ONE}", True),
    # By the CPU's log alone: nothing is written once the removal has begun.
    Case("best-effort, PML", f"RING PML NO_LATE_WRITES POLICY=BEST_EFFORT {_ONE}", True),
    Case("best-effort, bitmap, PML", f"BITMAP PML NO_LATE_WRITES POLICY=BEST_EFFORT {_ONE}", True),
    Case("best-effort, no late write", f"RING NO_LATE_WRITES POLICY=BEST_EFFORT {_ONE}", False),
    Case("the same, bitmap", f"BITMAP NO_LATE_WRITES POLICY=BEST_EFFORT {_ONE}", False),
    *_safe("QUIESCE", "RING", "BITMAP", "BITMAP MANUAL", "RING PML", "BITMAP PML", "RING NAS=2"),
    *_safe("READ_ONLY", "RING", "BITMAP", "BITMAP MANUAL", "RING PML", "BITMAP PML", "RING NAS=2"),
    *_safe("TOMBSTONE", "RING", "RING NAS=2"),
    # Where a tombstone is not enough.
    Case("tombstone, PML", f"RING PML POLICY=TOMBSTONE {_ONE}", True),
    Case("tombstone, id freed early", f"RING ID_FREED_EARLY POLICY=TOMBSTONE {_ONE}", True),
    Case("tombstone, second look-up", f"RING SECOND_LOOKUP BARRIER POLICY=TOMBSTONE {_TWO}", True),
    # A fast page fault that took no memslot along, of a memslot that is added again meanwhile.
    Case("quiesce, ring, two vCPUs", f"RING POLICY=QUIESCE {_TWO}", False),
    Case("quiesce, bitmap, two vCPUs", f"BITMAP POLICY=QUIESCE {_TWO}", False),
    Case("tombstone, two vCPUs", f"RING POLICY=TOMBSTONE {_TWO}", True),
    Case("tombstone, two vCPUs, barrier", f"RING BARRIER POLICY=TOMBSTONE {_TWO}", False),
    Case("read-only, two vCPUs", f"RING POLICY=READ_ONLY {_TWO}", True),
    Case("read-only, two vCPUs, barrier", f"RING BARRIER POLICY=READ_ONLY {_TWO}", False),
    # A ring that publishes at each reap, and absorbs a page's dirty bit when it is sent.
    *_safe("QUIESCE", "RING ABSORB", "RING ABSORB PML"),
    *_safe("TOMBSTONE", "RING ABSORB"),
    Case("publish, then reset", f"RING ABSORB PUBLISH_FIRST POLICY=QUIESCE {_ONE}", True),
]


def check(case: Case, directory: Path, *, seconds: float = SECONDS) -> Verdict:
    """Search all interleavings of a case.

    Args:
        case: which.
        directory: an empty one, for what Spin makes.
        seconds: how long the search may take.

    Raises:
        RuntimeError: Spin, the compiler or the search failed, or it did not search everything.
    """
    _run(["spin", *case.defines, "-a", str(MODEL)], directory, seconds)
    # Without warnings: what Spin generates has some.
    compiler = ["gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}"]
    _run([*compiler, "-o", "pan", "pan.c"], directory, seconds)
    output = _run(["./pan", f"-m{DEPTH}"], directory, seconds)
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    took = re.search(r"elapsed time (\S+) seconds", output)
    loses = errors is not None and errors[1] != "0"
    whole = loses or not re.search(r"not completed|max search depth|out of memory", output)
    if loses and not re.search(r"assertion violated\s+!\(differs\)", output):
        raise RuntimeError(f"{case.name}: the model itself is wrong:\n{output}")
    if errors is None or states is None or not whole:
        raise RuntimeError(f"{case.name}: not all was searched:\n{output}")
    steps = _steps(case, directory, seconds) if loses else ()
    return Verdict(loses, int(states[1]), float(took[1]) if took else 0.0, steps)


def _steps(case: Case, directory: Path, seconds: float) -> tuple[tuple[str, int, str], ...]:
    """Give the interleaving that pan has found, by Spin's own replay."""
    trail = ["-k", str(directory / f"{MODEL.name}.trail"), "-t", "-p"]
    output = _run(["spin", *case.defines, *trail, str(MODEL)], directory, seconds)
    found = map(_STEP.match, output.splitlines())
    return tuple((match[1], int(match[2]), match[3]) for match in found if match)


def _run(command: list[str], directory: Path, seconds: float) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        hint = "apt-get install spin gcc"
        raise RuntimeError(f"{command[0]} is not installed; {hint}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} took more than {seconds:g} s") from error
    if done.returncode not in (0, 1) or (done.returncode and command[0] != "./pan"):
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Print a Markdown table of all cases; status 1 if one is not as it is known to be."""
    parser = argparse.ArgumentParser(prog="python -m model.check", description=main.__doc__)
    parser.add_argument("--steps", metavar="CASE", help="print how this one loses a dirty bit")
    chosen = parser.parse_args().steps
    cases = [case for case in CASES if chosen in (None, case.name)]
    if not cases:
        parser.error(f"no case {chosen}; known: {'; '.join(case.name for case in CASES)}")
    if shutil.which("spin") is None:
        parser.error("spin is not installed; apt-get install spin gcc")
    wrong = 0
    print("| case | model | a dirty bit | states | s |\n|---|---|---|---|---|")
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            verdict = check(case, Path(directory))
        wrong += verdict.loses != case.loses
        answer = "can be lost" if verdict.loses else "is never lost"
        if verdict.loses != case.loses:
            answer = f"**{answer}**"
        print(
            f"| {case.name} | `{case.options}` | {answer} | {verdict.states:,} "
            f"| {verdict.seconds:.1f} |",
            flush=True,
        )
        if chosen:
            print()
            for process, line, statement in verdict.steps:
                print(f"{process:12} {MODEL.name}:{line:<4} {statement}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
