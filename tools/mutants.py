"""Apply one-step changes, one after the other, and tell which tests notice, and how soon.

`python tools/mutants.py [FILE]` (default: tests/mutants.yaml) works on a copy of the tree, prints a
table in Markdown, and ends with 1 if a change is not noticed. The tests that are named for a change
have to pass without it; that is looked at first, unless --trust is given.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter
from yaml import safe_load

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "tests/mutants.yaml"
_SECONDS = 600
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Mutant(BaseModel):
    """A change: `before`, which is once in `file`, becomes `after`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str
    before: str
    after: str
    tests: str

    def applied(self, text: str) -> str:
        """Give the file's text with the change."""
        before, after = self.before.rstrip("\n"), self.after.rstrip("\n")
        if text.count(before) != 1:
            raise SystemExit(f"{self.name}: {before!r} is not once in {self.file}")
        return text.replace(before, after)


def load(path: Path = MUTANTS) -> tuple[Mutant, ...]:
    """Read a file of changes."""
    return TypeAdapter(tuple[Mutant, ...]).validate_python(safe_load(path.read_text()))


def copy(to: Path) -> None:
    """Copy what git knows, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run(tree: Path, tests: str) -> tuple[bool, str, float]:
    """Run tests to the first that fails: whether all passed, which did not, and the seconds."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # Before what is installed; commands that tests start inherit it.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *shlex.split(tests)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False, f"none within {_SECONDS} s", time.monotonic() - started
    failed = _FAILED.search(done.stdout)
    if done.returncode not in (0, 1) or (done.returncode and failed is None):
        raise SystemExit(f"pytest did not run {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0, failed[1] if failed else "", time.monotonic() - started


def rows(tree: Path, mutants: tuple[Mutant, ...], notes: list[float]) -> Iterator[str]:
    """Give a line of the table for each change, as soon as it is known."""
    yield "| change | file | noticed by | s |\n|---|---|---|---|"
    for one in mutants:
        path = tree / one.file
        text = path.read_text(encoding="utf-8")
        path.write_text(one.applied(text), encoding="utf-8")
        try:
            passed, noticed, seconds = run(tree, one.tests)
        finally:
            path.write_text(text, encoding="utf-8")
        if not passed:
            notes.append(seconds)
        by = "**nothing**" if passed else f"`{noticed.removeprefix('tests/')}`"
        yield f"| {one.name} | `{one.file.removeprefix('qemu_ring/')}` | {by} | {seconds:.1f} |"


def main() -> int:
    """Give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=MUTANTS)
    parser.add_argument("--only", default="", help="changes whose names have this in them")
    parser.add_argument("--trust", action="store_true", help="the tests pass without a change")
    options = parser.parse_args()
    mutants = tuple(one for one in load(options.file) if options.only in one.name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy(tree)
        for tests in [] if options.trust else dict.fromkeys(one.tests for one in mutants):
            passed, failed, _ = run(tree, tests)
            if not passed:
                raise SystemExit(f"{failed} fails without any change")
        noticed: list[float] = []
        for line in rows(tree, mutants, noticed):
            print(line, flush=True)
    median = f", after {statistics.median(noticed):.1f} s in the median" if noticed else ""
    print(f"\n{len(noticed)} of {len(mutants)} noticed{median}.")
    return int(len(noticed) < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
