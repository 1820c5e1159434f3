"""One HTML file, and its plots as files, from the results of experiments."""

from qemu_ring.report.results import Cell, Results, Run, read_results
from qemu_ring.report.write import write_report

__all__ = ["Cell", "Results", "Run", "read_results", "write_report"]
