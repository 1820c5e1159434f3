"""Track a guest's dirty memory, and migrate it without losing a byte."""

__version__ = "0.1.0"
