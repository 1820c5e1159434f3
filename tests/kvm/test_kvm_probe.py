from __future__ import annotations

import signal
from pathlib import Path

import pytest

from qemu_ring.errors import HostError
from qemu_ring.machine.kvm import KvmCapabilities, probe_kvm

pytestmark = pytest.mark.kvm


@pytest.fixture
def capabilities() -> KvmCapabilities:
    try:
        return probe_kvm()
    except HostError as error:
        pytest.skip(str(error))


def test_answers_are_plausible(capabilities: KvmCapabilities) -> None:
    assert capabilities.api_version == 12
    assert capabilities.nr_memslots >= 32
    assert capabilities.max_vcpus >= 1
    assert capabilities.manual_protect2 in range(4)


def test_ring_size_is_a_power_of_two(capabilities: KvmCapabilities) -> None:
    entries = capabilities.dirty_ring_max_entries
    if entries == 0:
        pytest.skip("KVM has no dirty ring here")
    assert entries & (entries - 1) == 0
    assert entries * 16 == capabilities.dirty_ring_max_bytes


def test_tsc_frequency_is_one_that_cpus_have(capabilities: KvmCapabilities) -> None:
    if capabilities.tsc_khz == 0:
        pytest.skip("the TSC is not stable here")
    assert 500_000 < capabilities.tsc_khz < 10_000_000


def test_nothing_is_left_open(capabilities: KvmCapabilities) -> None:
    def kvm_descriptors() -> list[str]:
        links = Path("/proc/self/fd").iterdir()  # one of them is gone when the list is complete
        targets = [str(link.readlink()) for link in links if link.is_symlink()]
        return [target for target in targets if "kvm" in target]

    assert kvm_descriptors() == []
    assert probe_kvm() == capabilities
    assert kvm_descriptors() == []


def test_signals_do_not_disturb(capabilities: KvmCapabilities) -> None:
    caught = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while len(caught) < 20:
            assert probe_kvm() == capabilities
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
