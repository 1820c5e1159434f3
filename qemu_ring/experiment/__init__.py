"""Scripted migration experiments: a YAML file to plan, run, resume, compare and read back."""

from qemu_ring.experiment.compare.by_cell import compare_results
from qemu_ring.experiment.compare.verdicts import Criteria, ResultsComparison
from qemu_ring.experiment.errors import (
    ExperimentFileError,
    NothingInCommonError,
    StoreError,
    UndecidedError,
)
from qemu_ring.experiment.plan.cells import Cell, ExperimentPlan, Run
from qemu_ring.experiment.plan.load import load_experiment, parse_experiment
from qemu_ring.experiment.plan.schema import json_schema
from qemu_ring.experiment.plan.suitability import (
    require_suitable,
    unsuitable_cells,
    unsuitable_words,
)
from qemu_ring.experiment.results.reader import Results, read_results
from qemu_ring.experiment.results.record import RunRecord, Status
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.results.tables import export, rows
from qemu_ring.experiment.schedule.cluster import cluster_identity, run_on_cluster
from qemu_ring.experiment.schedule.experiment import run_experiment
from qemu_ring.experiment.schedule.local import Budget, ThisHost, examine_qemu
from qemu_ring.experiment.schedule.loop import Place, Watcher, run_left

__all__ = [  # noqa: RUF022 - in order of importance
    "load_experiment",
    "parse_experiment",
    "json_schema",
    "ExperimentPlan",
    "Cell",
    "Run",
    "run_experiment",
    "examine_qemu",
    "run_left",
    "Place",
    "ThisHost",
    "unsuitable_cells",
    "unsuitable_words",
    "require_suitable",
    "run_on_cluster",
    "cluster_identity",
    "Budget",
    "Watcher",
    "Status",
    "RunRecord",
    "Store",
    "Results",
    "read_results",
    "rows",
    "export",
    "compare_results",
    "Criteria",
    "ResultsComparison",
    "ExperimentFileError",
    "StoreError",
    "NothingInCommonError",
    "UndecidedError",
]
