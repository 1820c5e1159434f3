from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, HostError
from qemu_ring.machine import kvm
from qemu_ring.machine.kvm import KvmCapabilities, probe_kvm

HEADER = Path("/usr/include/linux/kvm.h")
NOBODY = 65534

CAPABILITIES = KvmCapabilities(
    api_version=12,
    dirty_ring_max_bytes=1 << 20,
    dirty_ring_with_bitmap=False,
    readonly_mem=True,
    manual_protect2=3,
    smm=False,
    nr_memslots=32764,
    max_vcpus=1024,
    tsc_khz=2_596_150,
)


def open_descriptors() -> set[str]:
    links = Path("/proc/self/fd").iterdir()  # one of them is gone when the list is complete
    return {f"{link.name} {link.readlink()}" for link in links if link.is_symlink()}


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user whom permission bits stop."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("root here cannot become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def refusal(path: str | Path) -> HostError:
    """The error for this path, after which nothing may be left open."""
    before = open_descriptors()
    with pytest.raises(HostError) as caught:
        probe_kvm(path)
    assert open_descriptors() == before
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_status is ExitStatus.HOST
    return caught.value


def test_no_such_file(tmp_path: Path) -> None:
    error = refusal(tmp_path / "kvm")
    assert "does not exist" in error.message
    assert "modprobe kvm_intel" in error.hint
    assert "nested virtualization" in error.hint
    assert "--device" in error.hint


@pytest.mark.parametrize("name", ["null", "zero"])
def test_another_device(name: str) -> None:
    assert "not a KVM device" in refusal(f"/dev/{name}").message


def test_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch()
    assert "not a KVM device" in refusal(path).message


def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch(mode=0)
    with unprivileged():
        error = refusal(path)
    assert "user" in error.message
    assert "sudo usermod -aG kvm $USER" in error.hint
    assert "log in again" in error.hint


def test_no_device_at_the_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("kvm")
        error = refusal("kvm")
    assert "no KVM driver" in error.message
    assert "modprobe kvm_amd" in error.hint


def test_device_node_without_driver(tmp_path: Path) -> None:
    taken = {int(line.split()[0]) for line in Path("/proc/misc").read_text().splitlines()}
    free = next(minor for minor in range(254, 0, -1) if minor not in taken)
    path = tmp_path / "kvm"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(10, free))
        path.open("rb").close()
    except OSError as error:
        if error.errno != errno.ENODEV:
            pytest.skip(f"cannot make or use device nodes here: {error}")
    assert "no KVM driver" in refusal(path).message


@pytest.mark.parametrize(
    ("code", "cause", "hint"),
    [
        (errno.EBUSY, "BIOS", "VirtualBox"),
        (errno.EPERM, "forbidden", "--device /dev/kvm"),
        (errno.ENOMEM, "Cannot allocate memory", "dmesg"),
    ],
)
def test_causes_that_cannot_be_staged(code: int, cause: str, hint: str) -> None:
    error = kvm._host_error("/dev/kvm", OSError(code, os.strerror(code)))
    assert cause in error.message
    assert hint in error.hint


def test_causes_are_told_apart() -> None:
    codes = [errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOTTY]
    errors = [kvm._host_error("/dev/kvm", OSError(code, "")) for code in codes]
    assert len({error.message for error in errors}) == len(codes)


def test_constants_are_the_kernel_headers() -> None:
    if not HEADER.exists():
        pytest.skip(f"no {HEADER}: install linux-libc-dev")
    text = HEADER.read_text()
    numbers = {
        name: int(value, 0)
        for name, value in re.findall(
            r"^#define\s+(KVM\w+)\s+(0x[0-9A-Fa-f]+|\d+)\b", text, re.MULTILINE
        )
    }
    shifts = re.findall(r"^#define\s+(KVM\w+)\s+\(1\s*<<\s*(\d+)\)", text, re.MULTILINE)
    numbers |= {name: 1 << int(shift) for name, shift in shifts}
    requests = re.findall(r"^#define\s+(KVM\w+)\s+_IO\(KVMIO,\s*(\w+)\)", text, re.MULTILINE)
    numbers |= {name: numbers["KVMIO"] << 8 | int(number, 0) for name, number in requests}

    ours = {member.name: member.value for member in (*kvm._Ioctl, *kvm._Cap, *kvm._ManualProtect)}
    ours["KVM_API_VERSION"] = kvm._API_VERSION
    in_header = {name: value for name, value in numbers.items() if name in ours}
    newer_than_header = {"KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP"}  # Linux 6.2
    assert set(ours) - set(in_header) <= newer_than_header
    assert {name: ours[name] for name in in_header} == in_header


def test_ring_entries_are_16_bytes() -> None:
    assert CAPABILITIES.dirty_ring_max_entries == 65536


@pytest.mark.parametrize(
    ("flags", "manual_protect", "initially_set"),
    [(0, False, False), (1, True, False), (3, True, True)],
)
def test_manual_protect_flags(flags: int, manual_protect: bool, initially_set: bool) -> None:
    capabilities = KvmCapabilities(12, 0, False, False, flags, False, 32, 1, 0)
    assert capabilities.manual_protect is manual_protect
    assert capabilities.initially_set is initially_set
    assert capabilities.dirty_ring_max_entries == 0


def test_as_dict_goes_through_json() -> None:
    document = json.loads(json.dumps(CAPABILITIES.as_dict()))
    assert document["dirty_ring_max_bytes"] == 1 << 20
    assert document["dirty_ring_max_entries"] == 65536
    assert document["initially_set"] is True
    assert document["tsc_khz"] == 2_596_150
    assert document["smm"] is False
