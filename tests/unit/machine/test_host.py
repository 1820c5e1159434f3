from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, HostError
from qemu_ring.machine.host import (
    Host,
    memory_available_bytes,
    probe_host,
    require_memory,
    shm_free_bytes,
)

GIB = 1 << 30
MIB = 1 << 20
UNLIMITED_V1 = 9223372036854771712  # what cgroup v1 shows where no limit is set

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Example CPU @ 2.60GHz: with a colon
flags\t\t: fpu vme

processor\t: 1
model name\t: Another CPU
"""
PROC_MOUNT = "22 27 0:21 / /proc rw,relatime - proc proc rw"
V2_MOUNT = "41 31 0:38 {} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"


class FakeRoot:
    """A /proc and /sys of files, for a host with 8 GiB available."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("proc/meminfo", f"MemTotal: 16777216 kB\nMemAvailable: {8 << 20} kB\n")
        self.write("proc/cpuinfo", CPUINFO)
        self.write("proc/sys/kernel/osrelease", "6.1.0-test\n")
        self.member("0::/\n", PROC_MOUNT)

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def member(self, cgroups: str, *mounts: str) -> None:
        self.write("proc/self/cgroup", cgroups)
        self.write("proc/self/mountinfo", "".join(f"{mount}\n" for mount in mounts))

    def v2(
        self, cgroup: str, *, limit: int | str, used: int, high: int | str = "max", cache: int = 0
    ) -> None:
        directory = f"sys/fs/cgroup/{cgroup}"
        self.write(f"{directory}/memory.max", f"{limit}\n")
        self.write(f"{directory}/memory.high", f"{high}\n")
        self.write(f"{directory}/memory.current", f"{used}\n")
        self.write(f"{directory}/memory.stat", f"anon 1\ninactive_file {cache}\nshmem 2\n")

    def v1(self, cgroup: str, *, limit: int, used: int, cache: int = 0) -> None:
        directory = f"sys/fs/cgroup/memory/{cgroup}"
        self.write(f"{directory}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{directory}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{directory}/memory.stat", f"inactive_file 77\ntotal_inactive_file {cache}\n")


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def test_probe_reads_what_linux_tells(root: FakeRoot) -> None:
    assert probe_host(root.path) == Host(
        kernel="6.1.0-test",
        cpu_model="Example CPU @ 2.60GHz: with a colon",
        cpus=len(os.sched_getaffinity(0)),
        memory_available_bytes=8 * GIB,
    )


@pytest.mark.parametrize(
    ("files", "module", "mainline"),
    [
        ({}, None, None),
        ({"kvm/parameters/x": ""}, None, None),
        ({"kvm/x": "", "kvm_intel/parameters/pml": "Y"}, "kvm_intel", True),
        ({"kvm_amd/taint": "\n"}, "kvm_amd", True),
        ({"kvm_amd/taint": "OE\n"}, "kvm_amd", False),
        ({"kvm_pvm/x": ""}, "kvm_pvm", False),
        ({"kvm_amd/x": "", "kvm_intel/x": ""}, "kvm_amd, kvm_intel", True),
    ],
)
def test_kvm_s_vendor_module(
    root: FakeRoot, files: dict[str, str], module: str | None, mainline: bool | None
) -> None:
    for name, text in files.items():
        root.write(f"sys/module/{name}", text)
    host = probe_host(root.path)
    assert (host.kvm_module, host.kvm_module_mainline) == (module, mainline)


def test_probe_without_a_cpu_model(root: FakeRoot) -> None:
    root.write("proc/cpuinfo", "processor : 0\n")
    assert probe_host(root.path).cpu_model == ""


def test_probe_of_this_host() -> None:
    host = probe_host()
    assert host.kernel == os.uname().release
    assert 0 < host.memory_available_bytes < sys.maxsize
    assert json.loads(json.dumps(host.as_dict())) == {
        "kernel": host.kernel,
        "cpu_model": host.cpu_model,
        "cpus": host.cpus,
        "memory_available_bytes": host.memory_available_bytes,
        "kvm_module": host.kvm_module,
        "kvm_module_mainline": host.kvm_module_mainline,
    }


def test_cpus_are_those_this_process_may_use(root: FakeRoot) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert probe_host(root.path).cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("name", ["proc/meminfo", "proc/cpuinfo", "proc/sys/kernel/osrelease"])
def test_missing_proc_file_is_named(root: FakeRoot, name: str) -> None:
    (root.path / name).unlink()
    with pytest.raises(HostError, match=name) as caught:
        probe_host(root.path)
    assert "/proc" in caught.value.hint


@pytest.mark.parametrize("text", ["MemTotal: 1 kB\n", "MemAvailable: lots\n", ""])
def test_meminfo_without_an_answer(root: FakeRoot, text: str) -> None:
    root.write("proc/meminfo", text)
    with pytest.raises(HostError, match="MemAvailable"):
        memory_available_bytes(root.path)


def test_v2_limit(root: FakeRoot) -> None:
    root.member("0::/guests\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("guests", limit=3 * GIB, used=1 * GIB)
    assert memory_available_bytes(root.path) == 2 * GIB


def test_v2_without_limit(root: FakeRoot) -> None:
    root.member("0::/guests\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("guests", limit="max", used=1 * GIB)
    assert memory_available_bytes(root.path) == 8 * GIB


def test_v2_root_cgroup_has_no_memory_files(root: FakeRoot) -> None:
    root.member("0::/\n", PROC_MOUNT, V2_MOUNT.format("/"))
    assert memory_available_bytes(root.path) == 8 * GIB


def test_v2_throttling_limit_counts(root: FakeRoot) -> None:
    root.member("0::/guests\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("guests", limit="max", high=2 * GIB, used=1 * GIB)
    assert memory_available_bytes(root.path) == 1 * GIB


def test_v2_file_cache_is_not_used_up(root: FakeRoot) -> None:
    root.member("0::/guests\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("guests", limit=3 * GIB, used=3 * GIB, cache=1 * GIB)
    assert memory_available_bytes(root.path) == 1 * GIB


@pytest.mark.parametrize("tightest", ["a", "a/b", "a/b/c"])
def test_v2_tightest_of_all_ancestors(root: FakeRoot, tightest: str) -> None:
    root.member("0::/a/b/c\n", PROC_MOUNT, V2_MOUNT.format("/"))
    for cgroup in ("a", "a/b", "a/b/c"):
        limit = 3 * GIB if cgroup == tightest else 6 * GIB
        root.v2(cgroup, limit=limit, used=1 * GIB)
    assert memory_available_bytes(root.path) == 2 * GIB


def test_v2_sibling_does_not_count(root: FakeRoot) -> None:
    root.member("0::/a\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("a", limit=3 * GIB, used=0)
    root.v2("b", limit=1 * GIB, used=0)
    assert memory_available_bytes(root.path) == 3 * GIB


def test_over_the_limit_is_none_left(root: FakeRoot) -> None:
    root.member("0::/a\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("a", limit=1 * GIB, used=2 * GIB)
    assert memory_available_bytes(root.path) == 0


def test_host_is_tighter_than_its_cgroup(root: FakeRoot) -> None:
    root.member("0::/a\n", PROC_MOUNT, V2_MOUNT.format("/"))
    root.v2("a", limit=64 * GIB, used=0)
    assert memory_available_bytes(root.path) == 8 * GIB


@pytest.mark.parametrize(
    ("mounted", "cgroup"),
    [
        ("/docker/1234", "/docker/1234"),  # the host's path, of which only the end is mounted
        ("/docker/1234", "/"),  # a namespace: both seen from the container's own cgroup
        ("/", "/../outside"),  # moved out of the namespace's own cgroup
        ("/docker", "/dockerized"),  # begins alike, but is another
    ],
)
def test_container_sees_its_cgroup_at_the_mount(root: FakeRoot, mounted: str, cgroup: str) -> None:
    root.member(f"0::{cgroup}\n", PROC_MOUNT, V2_MOUNT.format(mounted))
    root.v2(".", limit=3 * GIB, used=1 * GIB)
    assert memory_available_bytes(root.path) == 2 * GIB


def test_container_with_cgroups_of_its_own(root: FakeRoot) -> None:
    root.member("0::/docker/1234/guests\n", PROC_MOUNT, V2_MOUNT.format("/docker/1234"))
    root.v2(".", limit=6 * GIB, used=1 * GIB)
    root.v2("guests", limit=3 * GIB, used=1 * GIB)
    assert memory_available_bytes(root.path) == 2 * GIB


def test_v1_limit_and_ancestors(root: FakeRoot) -> None:
    root.member(
        "8:cpu,cpuacct:/tight\n4:memory:/a/b\n0::/\n",
        PROC_MOUNT,
        V1_CPU_MOUNT,
        V1_MOUNT.format("/"),
    )
    root.v1(".", limit=UNLIMITED_V1, used=5 * GIB)
    root.v1("a", limit=4 * GIB, used=2 * GIB, cache=1 * GIB)
    root.v1("a/b", limit=UNLIMITED_V1, used=1 * GIB)
    root.v1("tight", limit=1 * MIB, used=0)
    assert memory_available_bytes(root.path) == 3 * GIB


def test_v1_unlimited(root: FakeRoot) -> None:
    root.member("4:memory:/\n0::/\n", PROC_MOUNT, V1_MOUNT.format("/"))
    root.v1(".", limit=UNLIMITED_V1, used=5 * GIB)
    assert memory_available_bytes(root.path) == 8 * GIB


def test_both_versions_mounted(root: FakeRoot) -> None:
    root.member(
        "4:memory:/old\n0::/new\n",
        PROC_MOUNT,
        V1_MOUNT.format("/"),
        V2_MOUNT.format("/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
    )
    root.v1("old", limit=2 * GIB, used=0)
    root.v2("unified/new", limit=3 * GIB, used=0)
    root.v2(".", limit=1 * GIB, used=0)  # above the mount, so no cgroup
    assert memory_available_bytes(root.path) == 2 * GIB


def test_kernel_without_cgroups(root: FakeRoot) -> None:
    (root.path / "proc/self/cgroup").unlink()
    assert memory_available_bytes(root.path) == 8 * GIB


def test_shm_free_bytes(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = shm_free_bytes(tmp_path)
    assert 0 <= free <= status.f_blocks * status.f_frsize
    # sysfs has, like a tmpfs mounted with size=0, no blocks to count.
    assert shm_free_bytes("/sys") == sys.maxsize


def test_shm_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file") as caught:
        shm_free_bytes(tmp_path / "shm")
    assert "tmpfs" in caught.value.hint


HOST = Host(kernel="6.1", cpu_model="", cpus=2, memory_available_bytes=4 * GIB)


def test_enough_memory() -> None:
    require_memory(4 * GIB, HOST, "two guests")


def test_not_enough_memory() -> None:
    with pytest.raises(HostError) as caught:
        require_memory(4 * GIB + 1, HOST, "two guests")
    assert caught.value.message == (
        "not enough memory for two guests: needs 4097 MiB, 4096 MiB are available"
    )
    assert "smaller guests" in caught.value.hint
    assert caught.value.exit_status is ExitStatus.HOST
