"""What `qemu-ring migrate` refuses before it connects, and how it prints what is not known."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.cli.migrate import command as migrate
from qemu_ring.cli.migrate.plan_options import (
    plan_of,
    require_new_file,
    require_saved_guest,
    require_two_guests,
    saved_in,
)
from qemu_ring.errors import UsageError
from qemu_ring.migration import Goal, MappedRam, MigrationPlan, Multifd, Postcopy, Tcp


def plan(*arguments: str) -> MigrationPlan:
    context = migrate.migrate.make_context("migrate", ["source", *arguments])
    options: dict[str, Any] = dict(context.params)
    return plan_of(options, saved_in(options["to_file"] or options["from_file"], None))


def test_options_of_a_plan() -> None:
    made = plan("twin", "--multifd=4", "--compression=zstd", "--compression-level=20")
    assert made.multifd == Multifd(4, "zstd", 20)
    assert plan("--to-file=x", "--mapped-ram", "--direct-io").mapped_ram == MappedRam(True)
    assert plan("twin", "--switchover-bandwidth=1G").switchover_bandwidth == 1 << 30
    assert plan("twin", "--max-bandwidth=0", "--downtime-limit=0.25").max_bandwidth == 0


def test_goal() -> None:
    made = plan("twin", "--within=90s", "--downtime=50ms", "--then=postcopy").goal
    assert made == Goal(90, 0.05, "postcopy")
    assert plan("twin", "--within=1min").goal == Goal(60, 0.3, "throttle")
    rate = plan("twin", "--within=1", "--then=postcopy", "--postcopy-bandwidth=1M").goal
    assert rate is not None
    assert rate.postcopy_bandwidth == 1 << 20
    kind = plan("twin", "--kind=postcopy", "--postcopy-bandwidth=1M").kind
    assert kind == Postcopy(max_bandwidth=1 << 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--downtime=50ms",), "--downtime needs --within"),
        (("--then=wait",), "--then needs --within"),
        (("--within=9", "--kind=postcopy"), "--within is for precopy, not for postcopy"),
        (("--within=9", "--downtime-limit=1"), "--downtime-limit cannot be beside a goal"),
        (("--within=9", "--auto-converge"), "--auto-converge or --dirty-limit cannot be beside"),
        (("--postcopy-bandwidth=1M",), "needs --kind postcopy or --then postcopy"),
        (
            ("--within=9", "--then=postcopy", "--postcopy-bandwidth=5"),
            "--postcopy-bandwidth 5 would be no limit",
        ),
    ],
)
def test_refused_goal(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan("twin", *arguments)


def test_where_the_destination_listens() -> None:
    def channel(listen: str) -> object:
        return plan("twin", "--channel=tcp:192.0.2.7:4444", f"--listen={listen}").channel

    assert channel("0.0.0.0") == Tcp("192.0.2.7", 4444, "0.0.0.0")
    assert channel("10.0.0.1:5555") == Tcp("192.0.2.7", 4444, "10.0.0.1", 5555)
    assert channel("::") == Tcp("192.0.2.7", 4444, "::")
    assert channel("[fe80::1]:5555") == Tcp("192.0.2.7", 4444, "fe80::1", 5555)
    for wrong in ("", ":1", "host:port", "[::]:x"):
        with pytest.raises(UsageError, match="is no address; use HOST"):
            channel(wrong)
    with pytest.raises(UsageError, match="--listen needs --channel tcp"):
        plan("twin", "--listen=0.0.0.0")
    with pytest.raises(UsageError, match="is no port 0"):
        plan("twin", "--channel=tcp:192.0.2.7:0", "--listen=0.0.0.0:5555")
    with pytest.raises(UsageError, match="port 65536"):
        plan("twin", "--channel=tcp:192.0.2.7:1", "--listen=0.0.0.0:65536")


def test_file_to_save_to(tmp_path: Path) -> None:
    require_new_file(tmp_path / "new", overwrite=False)
    there = tmp_path / "there"
    there.touch()
    with pytest.raises(UsageError, match="there already; replace it with --overwrite"):
        require_new_file(there, overwrite=False)
    require_new_file(there, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("", "a directory"), ("link", "to nothing"), ("fifo", "no regular file")):
        with pytest.raises(UsageError, match=words):
            require_new_file(tmp_path / name, overwrite=True)
    with pytest.raises(UsageError, match="is no directory; make it first"):
        require_new_file(tmp_path / "none/file", overwrite=True)
    with pytest.raises(UsageError, match="Not a directory"):
        require_new_file(there / "file", overwrite=True)


def test_file_to_restore_from(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.write_bytes(b"QEVM\0\0\0\3")
    require_saved_guest(saved)
    for content in (b"", b"QEV", b"\x7fELF", b"MVEQ"):
        saved.write_bytes(content)
        with pytest.raises(UsageError, match="holds no saved guest; name one"):
            require_saved_guest(saved)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="no regular file"):
        require_saved_guest(tmp_path / "fifo")
    with pytest.raises(UsageError, match="cannot be opened: No such file"):
        require_saved_guest(tmp_path / "none")


def test_two_monitors_are_two(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(tmp_path / "one"))
        other.bind(str(tmp_path / "other"))
        (tmp_path / "link").symlink_to("one")
        require_two_guests(str(tmp_path / "one"), str(tmp_path / "other"))
        require_two_guests(str(tmp_path / "one"), str(tmp_path / "none"))
        for same in ("one", "link", "../" + tmp_path.name + "/one"):
            with pytest.raises(UsageError, match="the same monitor; name another"):
                require_two_guests(str(tmp_path / "one"), str(tmp_path / same))
    with pytest.raises(UsageError, match="the same monitor"):
        require_two_guests("host:4444", "host:4444")
