"""The QEMUs of these tests."""

from tests.qemu.dirty.conftest import any_qemu

__all__ = ["any_qemu"]
