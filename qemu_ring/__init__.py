"""Track a guest's dirty memory, and migrate it without losing a byte.

What programs need is here by name, such as `from qemu_ring import Machine, Migration`; the stub
beside this file lists it. A name's layer is imported when it is first asked for, so that a command
starts as quickly as before. Only `prove` is not here: it is the name of its layer.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

__version__ = "0.1.0"
