"""What a channel makes on this host, and that it goes again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration import File, MigrationError, Unix

if TYPE_CHECKING:
    from tests.unit.migration.conftest import Fakes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def make(path: Path) -> None:
    path.touch()


async def test_socket_of_our_own(folder: Path) -> None:
    connection = Unix().connect(None, None)
    uri = await connection.listen()
    assert uri == await connection.reach()
    path = Path(uri.removeprefix("unix:"))
    assert path.parent.parent == folder
    make(path)
    connection.established()
    assert names(folder) == []
    connection.close(completed=True)


async def test_socket_of_the_callers(folder: Path) -> None:
    connection = Unix(folder / "socket").connect(None, None)
    assert await connection.listen() == f"unix:{folder / 'socket'}"
    make(folder / "socket")
    connection.close(completed=False)
    assert names(folder) == []


@pytest.mark.parametrize("name", ["file", "."])
def test_what_is_no_socket_is_not_touched(folder: Path, name: str) -> None:
    (folder / "file").write_text("of value")
    with pytest.raises(UsageError, match="is there already, and no socket"):
        Unix(folder / name).connect(None, None)
    assert (folder / "file").read_text() == "of value"


def test_directory_is_no_file_to_save_to(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        File(folder).connect(None, None)


async def test_saved_guest_whose_place_was_taken_meanwhile_is_kept(
    folder: Path, fakes: Fakes
) -> None:
    connection = File(folder / "saved").connect(fakes.first.monitor, None)
    await connection.reach()
    (partial,) = names(folder)
    (folder / partial).write_text("a guest")
    (folder / "saved").mkdir()
    with pytest.raises(MigrationError, match="saved cannot be written: Is a directory") as caught:
        await connection.finish()
    connection.close(completed=True)
    assert set(names(folder)) == {"saved", partial.removeprefix(".")}
    kept = folder / partial.removeprefix(".")
    assert caught.value.hint == f"it is in {kept}"
    assert kept.read_text() == "a guest"
