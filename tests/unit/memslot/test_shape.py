"""What the shapes of removal do to the memory map."""

from __future__ import annotations

import pytest

from qemu_ring.memslot import Layout, Shape, Window, layouts

MIB = 1 << 20
SLOT = Window(8 << 30, "a", 0, 32 * MIB)
HELPER = Window(9 << 30, "b", 0, 2 * MIB)
ELSEWHERE = 10 << 30
DRIVEN = [shape for shape in Shape if shape is not Shape.PCI]


@pytest.mark.parametrize("shape", DRIVEN)
def test_each_cycle_changes_something_and_ends_where_it_began(shape: Shape) -> None:
    whole = Layout((SLOT, HELPER))
    cycle = layouts(shape, SLOT, HELPER, ELSEWHERE)
    assert cycle[-1].slots() == whole.slots()
    before = whole
    for layout in cycle:
        assert layout.slots() != before.slots()
        before = layout


@pytest.mark.parametrize("shape", DRIVEN)
def test_windows_stay_within_their_memory_and_do_not_overlap(shape: Shape) -> None:
    for layout in layouts(shape, SLOT, HELPER, ELSEWHERE):
        at = 0
        for window in sorted(layout.windows, key=lambda window: window.address):
            whole = SLOT if window.backend == "a" else HELPER
            assert window.size > 0
            assert window.offset >= 0
            assert window.offset + window.size <= whole.size
            assert window.address >= at
            at = window.address + window.size
            assert (window.address | window.offset | window.size) % 4096 == 0


def test_shapes_are_what_they_are_called() -> None:
    def first(shape: Shape) -> Layout:
        return layouts(shape, SLOT, HELPER, ELSEWHERE)[0]

    assert first(Shape.SEVERAL).windows == ()
    split = first(Shape.SPLIT).windows
    assert [window.size for window in split] == [16 * MIB, 16 * MIB, 2 * MIB]
    assert split[1].address == split[0].address + split[0].size
    punched = first(Shape.PUNCH).windows
    assert punched[1].address > punched[0].address + punched[0].size
    assert punched[1].offset == punched[1].address - SLOT.address
    assert first(Shape.RESIZE).windows == (SLOT.part(0, 16 * MIB), HELPER)
    assert first(Shape.MOVE).windows == (SLOT.at(ELSEWHERE), HELPER)
    assert first(Shape.READ_ONLY).read_only == {"a"}


def test_pci_is_none_of_the_test_devices() -> None:
    with pytest.raises(ValueError, match="does not do pci"):
        layouts(Shape.PCI, SLOT, HELPER, ELSEWHERE)
