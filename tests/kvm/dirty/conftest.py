"""The guests of tests/qemu/dirty, under KVM."""

from tests.qemu.dirty.conftest import any_qemu, start_writer

__all__ = ["any_qemu", "start_writer"]
