"""Removing what a build made: nobody waits long for it, and it is done all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qemu_ring.programs import remove
from tests.waiting import wait_until

OVER = 100.0  # seconds that a test is never to wait


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_gone(tmp_path: Path) -> None:
    (tmp_path / "a dir/with/more").mkdir(parents=True)
    (tmp_path / "-file").touch()
    (tmp_path / "kept").touch()
    (tmp_path / "a dir/link").symlink_to(tmp_path / "kept")
    await remove([tmp_path / "a dir", tmp_path / "-file", tmp_path / "none"], patience=OVER)
    assert names(tmp_path) == ["kept"]


async def test_nothing_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/programs")
    await remove([])


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `rm` that waits until a file is there, which is returned."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "rm"
    program.write_text(
        f'#!/bin/sh\nwhile ! test -e {tmp_path}/go; do sleep 0.01; done\nexec /bin/rm "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return tmp_path / "go"


def let_go(held: Path) -> None:
    held.touch()


async def test_what_takes_long_goes_on_by_itself(tmp_path: Path, held: Path) -> None:
    (tmp_path / "tree").mkdir()
    await remove([tmp_path / "tree"], patience=0.01)
    assert (tmp_path / "tree").exists()
    let_go(held)
    wait_until(lambda: not (tmp_path / "tree").exists(), "it is removed")


async def test_cancelled(tmp_path: Path, held: Path) -> None:
    (tmp_path / "tree").mkdir()
    removing = asyncio.create_task(remove([tmp_path / "tree"], patience=OVER))
    await asyncio.sleep(0)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    let_go(held)
    wait_until(lambda: not (tmp_path / "tree").exists(), "it is removed")
