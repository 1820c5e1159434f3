"""What can go wrong while two memories are compared.

::

    VerifyError                    the comparison has no answer
     +-- ComparisonCancelledError  its caller stopped it
"""

from qemu_ring.errors import QemuRingError

__all__ = ["ComparisonCancelledError", "VerifyError"]


class VerifyError(QemuRingError):
    """Two memories could not be compared; says nothing about whether they are equal."""


class ComparisonCancelledError(VerifyError):
    """A comparison was stopped by its caller before it had an answer."""
