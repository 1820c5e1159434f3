"""One HTML file, and its plots as files, from the results of experiments."""

from qemu_ring.report.write import write_report

__all__ = ["write_report"]
