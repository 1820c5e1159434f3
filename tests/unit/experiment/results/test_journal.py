"""Files that are whole, whatever happens to the disk or the writer."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus
from qemu_ring.experiment import ExperimentPlan, Store, StoreError
from qemu_ring.experiment.results.journal import Journal, write_whole

LINES = b"first\nsecond\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "lines"
    found.write_bytes(LINES)
    return found


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path)
    yield opened
    opened.close()


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after_some(then: Callable[..., int]) -> Callable[..., int]:
    """A write that takes three bytes, and then no more."""
    real, called = os.write, []

    def write(fd: int, data: bytes) -> int:
        called.append(fd)
        return real(fd, data[:3]) if len(called) == 1 else then(fd, data)

    return write


@pytest.mark.parametrize("case", range(3))
def test_full_disk_leaves_nothing_of_a_line(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, case: int
) -> None:
    full = [no_space, after_some(no_space), after_some(lambda *_: 0)][case]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=r"lines could not be written: No space left") as caught:
        journal.append(b"third\n")
    assert caught.value.exit_status is ExitStatus.FAILED
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == LINES
    monkeypatch.undo()
    journal.append(b"third\n")
    assert path.read_bytes() == LINES + b"third\n"


def test_nothing_comes_behind_a_torn_line(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that could not be cut off at once is, or nothing more is written."""
    monkeypatch.setattr(os, "write", after_some(no_space))
    monkeypatch.setattr(os, "ftruncate", no_space)
    with pytest.raises(StoreError):
        journal.append(b"third\n")
    assert path.read_bytes() == LINES + b"thi"
    monkeypatch.undo()
    monkeypatch.setattr(os, "ftruncate", no_space)
    with pytest.raises(StoreError):
        journal.append(b"fourth\n")
    assert path.read_bytes() == LINES + b"thi"
    monkeypatch.undo()
    journal.append(b"fourth\n")
    assert path.read_bytes() == LINES + b"fourth\n"


def test_lines_of_several_threads_are_whole(path: Path, journal: Journal) -> None:
    lines = [bytes([65 + number]) * 100_000 + b"\n" for number in range(8)]
    threads = [threading.Thread(target=journal.append, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_bytes().splitlines(keepends=True)[2:]) == lines


def test_torn_line_of_a_file_of_many_gigabytes(path: Path, journal: Journal) -> None:
    """A single read gives 2 GiB at most."""
    with path.open("r+b") as file:
        for end in (1 << 30, 5 << 29):
            file.seek(end - 1)
            file.write(b"\n")
        file.write(b"torn")
    journal.cut_torn_line()
    assert path.stat().st_size == 5 << 29


@pytest.mark.parametrize("size", [0, 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_torn_line_of_any_length(path: Path, journal: Journal, size: int) -> None:
    path.write_bytes(LINES + b"x" * size)
    journal.cut_torn_line()
    assert path.read_bytes() == LINES
    path.write_bytes(b"x" * size)
    journal.cut_torn_line()
    assert path.read_bytes() == b""


def test_nothing_is_written_once_it_is_closed(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    with pytest.raises(StoreError, match="is closed"):
        journal.append(b"third\n")


def test_document_is_as_before_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "document"
    write_whole(path, b"before")
    monkeypatch.setattr(os, "write", after_some(no_space))
    with pytest.raises(StoreError, match="document could not be written: No space left on device"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_plan_on_a_full_disk(
    tmp_path: Path, plan: ExperimentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", no_space)
    with Store(tmp_path) as store, pytest.raises(StoreError, match="No space left") as caught:
        store.begin(plan, None)
    assert caught.value.exit_status is ExitStatus.USAGE, "nothing was run"
    assert [one.name for one in tmp_path.iterdir()] == ["results.jsonl"]
    monkeypatch.undo()
    with Store(tmp_path) as store:
        assert len(store.begin(plan, None).left) == len(plan.runs)
