"""Experiments in YAML: what they mean, and how mistakes in them are told."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.experiment import (
    ExperimentFileError,
    ExperimentPlan,
    json_schema,
    load_experiment,
    parse_experiment,
)
from qemu_ring.experiment.plan.migrations import clear_chunk_arguments, migration_plan
from qemu_ring.experiment.plan.schema import CellPart
from qemu_ring.migration import Channel, Fd, Tcp

from .conftest import EXPERIMENT

FOLDER = Path(__file__).resolve().parents[3] / "experiments"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
MATRIX = EXPERIMENT[EXPERIMENT.index("matrix:") :]


def with_matrix(text: str) -> str:
    return EXPERIMENT.replace(MATRIX, text)


def names(text: str) -> list[str]:
    return [cell.name for cell in parse_experiment(text).cells]


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ExperimentFileError) as caught:
        parse_experiment(text, name="e.yaml")
    assert caught.value.exit_status is ExitStatus.USAGE
    return caught.value.problems


def test_cells(plan: ExperimentPlan) -> None:
    assert [cell.name for cell in plan.cells] == ["tracking=bitmap", "tracking=ring:4096"]
    bitmap, ring = (cell.parameters for cell in plan.cells)
    assert (bitmap["ring_entries"], ring["ring_entries"]) == (None, 4096)
    differing = {key for key in ring if ring[key] != bitmap[key]}
    assert differing == {"tracking", "ring_entries"}
    assert ring["memory_bytes"] == 64 << 20
    assert ring["max_bandwidth"] == 500 << 20
    assert ring["workload.pages_per_second"] == 1000
    assert ring["channel"] == "fd"


@pytest.mark.parametrize(
    ("more", "channel"),
    [
        ("channel: tcp", Tcp()),
        ("channel: tcp\n  listen: 127.0.0.9", Tcp("127.0.0.9")),
        ("channel: tcp\n  listen: 0.0.0.0", Tcp("127.0.0.1", listen="0.0.0.0")),
        ('multifd: 2\n  listen: "::"', Tcp("::1", listen="::")),
        ("listen: null", Fd()),
    ],
)
def test_channel(more: str, channel: Channel) -> None:
    plan = parse_experiment(EXPERIMENT.replace("max-bandwidth: 500 MiB", more))
    wanted = plan.cells[0].specification["migration"]
    assert migration_plan(CellPart.model_validate({"migration": wanted})).channel == channel


def test_ids_depend_on_what_is_run_alone(plan: ExperimentPlan, tmp_path: Path) -> None:
    again = parse_experiment(EXPERIMENT.replace("name: small", "name: other"), directory=tmp_path)
    assert [cell.id for cell in again.cells] == [cell.id for cell in plan.cells]
    other = parse_experiment(EXPERIMENT.replace("500 MiB", "501 MiB"))
    assert not {cell.id for cell in other.cells} & {cell.id for cell in plan.cells}


def test_axes_multiply() -> None:
    text = with_matrix("""\
matrix:
  guest.tracking: [bitmap, ring:4096]
  migration.kind: [precopy, postcopy]
  throttling:
    none: {migration.throttle: none}
    auto-converge: {migration.throttle: auto-converge, migration.max-bandwidth: 1 GiB}
exclude:
  - {migration.kind: postcopy, throttling: auto-converge}
  - {guest.tracking: bitmap, migration.kind: [postcopy]}
include:
  - {guest.tracking: ring:8192}
""")
    plan = parse_experiment(text)
    assert [cell.name for cell in plan.cells] == [
        "tracking=bitmap, migration=precopy, throttling=none",
        "tracking=bitmap, migration=precopy, throttling=auto-converge",
        "tracking=ring:4096, migration=precopy, throttling=none",
        "tracking=ring:4096, migration=precopy, throttling=auto-converge",
        "tracking=ring:4096, migration=postcopy, throttling=none",
        "tracking=ring:8192",
    ]
    assert plan.cells[1].parameters["max_bandwidth"] == 1 << 30
    assert plan.cells[1].parameters["throttling"] == "auto-converge"
    assert plan.cells[5].parameters["migration"] == "precopy"


def test_named_values() -> None:
    text = with_matrix("""\
matrix:
  guest.workload.streams:
    slow: [{pattern: loop, pages-per-second: 10}]
    fast: [{pattern: loop}]
""")
    plan = parse_experiment(text)
    assert [cell.name for cell in plan.cells] == ["streams=slow", "streams=fast"]
    rates = [cell.parameters["workload.pages_per_second"] for cell in plan.cells]
    assert rates == [10, None]


def test_element_of_a_list() -> None:
    rate = "guest.workload.streams[0].pages-per-second"
    plan = parse_experiment(with_matrix(f"matrix:\n  {rate}: [10, 20]\n"))
    assert [cell.parameters["workload.pages_per_second"] for cell in plan.cells] == [10, 20]


def test_without_a_matrix() -> None:
    assert names(with_matrix("")) == ["all"]


def test_only_included() -> None:
    assert names(with_matrix("include: [{guest.tracking: ring:8192}]")) == ["tracking=ring:8192"]


def test_guest_from_a_file(tmp_path: Path) -> None:
    guest = yaml.safe_load(EXPERIMENT)["guest"]
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(guest))
    inline = EXPERIMENT[EXPERIMENT.index("guest:") : EXPERIMENT.index("migration:")]
    (tmp_path / "e.yaml").write_text(EXPERIMENT.replace(inline, "guest: g.yaml\n"))
    plan = load_experiment(tmp_path / "e.yaml")
    assert [cell.name for cell in plan.cells] == ["tracking=bitmap", "tracking=ring:4096"]
    (tmp_path / "g.yaml").write_text("memory: 64 MiB\nvcpus: 0\n")
    with pytest.raises(ExperimentFileError) as caught:
        load_experiment(tmp_path / "e.yaml")
    assert caught.value.problems[0].startswith("g.yaml:2: guest.vcpus: must be greater")
    (tmp_path / "g.yaml").unlink()
    with pytest.raises(ExperimentFileError, match=r"e.yaml:2: guest: g.yaml: No such file"):
        load_experiment(tmp_path / "e.yaml")


MISTAKES = [
    ("repeats: 3", "repeat: 3", "e.yaml:14: repeat: unknown key; known: name, "),
    ("repeats: 3", "repeats: 0", "e.yaml:14: repeats: must be greater than or equal to 1, not 0"),
    ("repeats: 3", "time-limit: 0", "e.yaml:14: time-limit: must be greater than 0"),
    ("repeats: 3", "exclude: [{guest.vcpus: 1}]", "e.yaml:14: exclude[0].guest.vcpus: is no axis"),
    ("repeats: 3", "exclude: [{}]", "e.yaml:14: exclude[0]: would exclude everything"),
    (
        "repeats: 3",
        "exclude: [{guest.tracking: ring:1}]",
        "e.yaml:14: exclude[0].guest.tracking: 'ring:1' is none of the axis' values: bitmap, ",
    ),
    (
        "repeats: 3",
        "exclude: [{guest.tracking: [bitmap, ring:4096]}]",
        "e.yaml:14: exclude: leaves nothing to run",
    ),
    (
        "repeats: 3",
        "exclude: [{guest.tracking: bitmap}, {guest.tracking: bitmap}]\nx: 1",
        "e.yaml:15: x: unknown key",
    ),
    ("repeats: 3", "include: [{guest.tracking: bitmap}]", "e.yaml:14: include[0]: tracking=bitmap"),
    ("repeats: 3", "include: [{foo: 1}]", "e.yaml:14: include[0].foo: foo is no key of the exp"),
    ("[bitmap, ring:4096]", "[]", "e.yaml:13: matrix.guest.tracking: needs a list of values"),
    ("[bitmap, ring:4096]", "[{}]", "e.yaml:13: matrix.guest.tracking[0]: such a value needs a"),
    ("[bitmap, ring:4096]", "[a, a]", "e.yaml:13: matrix.guest.tracking[1]: a is there twice"),
    (
        "[bitmap, ring:4096]",
        "\n    - bitmap\n    - ring:4095",
        "e.yaml:15: guest.tracking: ring size 4095 is no power of two",
    ),
    ("guest.tracking:", "gest.tracking:", "e.yaml:13: matrix.gest.tracking: gest.tracking is no"),
    (
        "guest.tracking: [bitmap, ring:4096]",
        "guest.slots[2].size: [1]",
        "e.yaml:13: matrix.guest.slots[2].size[0]: there is no guest.slots[2]",
    ),
    (
        "guest.tracking: [bitmap, ring:4096]",
        "own: {a: {guest.vcpu: 1}}",
        "e.yaml:13: guest.vcpu: unknown key; known: memory, ",
    ),
    ("guest.tracking: [bitmap, ring:4096]", "own: {a: 1}", "e.yaml:13: matrix.own.a: a variant is"),
    ("random", "lop", 'e.yaml:9: guest.workload.streams[0].pattern: unknown pattern "lop"'),
    ("500 MiB", "fast", "e.yaml:11: migration.max-bandwidth: 'fast' is no rate"),
    ("max-bandwidth: 500 MiB", "kind: fast", "e.yaml:11: migration.kind: must be 'precopy' or"),
    (
        "max-bandwidth: 500 MiB",
        "compression: zstd",
        "e.yaml:11: migration.compression: needs multifd",
    ),
    (
        "max-bandwidth: 500 MiB",
        "throttle: dirty-limit",
        "e.yaml:11: migration.throttle: dirty-limit needs guest.tracking ring:SIZE",
    ),
    (
        "repeats: 3",
        "removals: {slots: [a]}",
        "e.yaml:14: removals: the guest has no slots (guest.slots) (in tracking=bitmap)",
    ),
    (
        "max-bandwidth: 500 MiB",
        "channel: fd\nnetwork: {latency-seconds: 1}",
        "e.yaml:11: migration.channel: network conditions need the channel tcp",
    ),
    ("max-bandwidth: 500 MiB", "zero-copy: true", "e.yaml:11: migration.zero-copy: needs multifd"),
    (
        "max-bandwidth: 500 MiB",
        "multifd: 2\n  zero-copy: true\n  xbzrle: 64 MiB",
        "e.yaml:12: migration.zero-copy: sends pages as they are: no xbzrle",
    ),
    (
        "max-bandwidth: 500 MiB",
        "listen: 127.0.0.1",
        "e.yaml:11: migration.listen: needs the channel tcp",
    ),
    (
        "max-bandwidth: 500 MiB",
        "channel: tcp\n  listen: 127.0.0.1:4444",
        "e.yaml:12: migration.listen: '127.0.0.1:4444' is no IP address, such as 192.0.2.7",
    ),
    (
        "max-bandwidth: 500 MiB",
        "listen: 192.0.2.7\nnetwork: {latency-seconds: 1}",
        "e.yaml:11: migration.listen: network conditions are those of loopback addresses only",
    ),
    ("repeats: 3", "time-limit: .inf", "e.yaml:14: time-limit: must be a finite number, not inf"),
    ("repeats: 3", "time-limit: .nan", "e.yaml:14: time-limit: must be a finite number, not nan"),
    ("repeats: 3", "time-limit: soon", "e.yaml:14: time-limit: 'soon' is no duration; use sec"),
    ("repeats: 3", "time-limit: -1min", "e.yaml:14: time-limit: must be greater than 0"),
    ("repeats: 3", f"time-limit: 1{'0' * 400}", "e.yaml:14: time-limit: is far too large"),
    ("repeats: 3", "description: 2020-13-45", "e.yaml:14:14: description: '2020-13-45' is no time"),
    ("repeats: 3", 'seed: !!int "x"', "e.yaml:14:7: seed: 'x' is no int; put a word into quotes"),
    (
        "repeats: 3",
        "settle-seconds: 20\ntime-limit: 20",
        "e.yaml:14: settle-seconds: must be less than time-limit, 20 s, or nothing is migrated",
    ),
    (
        "500 MiB",
        "500 MiB\n  abort: {seconds: 118}\ntime-limit: 119",
        "e.yaml:12: migration.abort.seconds: must be less than 118 s, what time-limit leaves",
    ),
    ("500 MiB", "99999999 T", "e.yaml:11: migration.max-bandwidth: '99999999 T' is too much"),
    (
        "500 MiB",
        "500 MiB\n  goal: {within: 118s}\ntime-limit: 119",
        "e.yaml:12: migration.goal.within: must be less than 118 s, what time-limit leaves",
    ),
    (
        "500 MiB",
        "500 MiB\n  goal: {within: 9s, then: give-up}",
        "e.yaml:12: migration.goal.then: ",
    ),
    (
        "500 MiB",
        "500 MiB\n  goal: {within: 9s}\n  downtime-limit: 1s",
        "e.yaml:13: migration.downtime-limit: cannot be beside a goal",
    ),
    (
        "500 MiB",
        "500 MiB\n  goal: {within: 9s, then: dirty-limit}",
        "e.yaml:12: migration.goal.then: dirty-limit needs guest.tracking ring:SIZE",
    ),
    (
        "500 MiB",
        "500 MiB\n  goal: {within: 9s}\n  postcopy-bandwidth: 1M",
        "e.yaml:13: migration.postcopy-bandwidth: is for postcopy, and the goal takes none",
    ),
    ("500 MiB", "9", "e.yaml:11: migration.max-bandwidth: 9 would be no limit: QEMU counts by"),
    (
        "500 MiB",
        "500 MiB\n  downtime-limit: 900us",
        "e.yaml:12: migration.downtime-limit: 0.0009 s would be no limit",
    ),
    (
        "500 MiB",
        "500 MiB\n  xbzrle: 5000",
        "e.yaml:12: migration.xbzrle: 5000 is no power of two from 4K on; use 64M, say",
    ),
    (
        "500 MiB",
        "500 MiB\n  throttle: auto-converge\n  auto-converge: {initial: 50, maximum: 40}",
        "e.yaml:13: migration.auto-converge.maximum: 40 is out of range; use 50 to 99",
    ),
    ("500 MiB", "1025 T", "e.yaml:11: migration.max-bandwidth: is more than 1024 TiB a second"),
    ("repeats: 3", "network: {}", "e.yaml:14: network: names no condition: bandwidth, latency-"),
    ("repeats: 3", "network: {bandwidth: 0}", "e.yaml:14: network.bandwidth: must be greater than"),
    (
        "repeats: 3",
        "network: {latency-seconds: 900ns}",
        "e.yaml:14: network.latency-seconds: is less than netem counts; use 1us or more, or 0",
    ),
    (
        "repeats: 3",
        "network: {loss-percent: 0.0000001}",
        "e.yaml:14: network.loss-percent: is less than netem",
    ),
    (
        "repeats: 3",
        "network: {loss-percent: 99.99999}",
        "e.yaml:14: network.loss-percent: must be less",
    ),
    ("repeats: 3", "stop: {failures-in-a-row: 0}", "e.yaml:14: stop.failures-in-a-row: must be"),
    ("memory: 64 MiB", "memory: 24 MiB", "e.yaml:7: guest.workload.regions[0]: it is not all in"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_mistake(old: str, new: str, message: str) -> None:
    assert old in EXPERIMENT
    assert problems(EXPERIMENT.replace(old, new))[0].startswith(message)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("preempt: true", "migration.preempt: needs kind: postcopy"),
        ("after-passes: 3", "migration.after-passes: needs kind: postcopy"),
        ("compression: zstd", "migration.compression: needs multifd"),
        ("multifd: 2, compression-level: 3", "migration.compression-level: needs compression"),
        (
            "multifd: 2, compression: zlib, compression-level: 99",
            "migration.compression-level: 99 is out of range; use 0 to 9",
        ),
        ("downtime-limit: 5000", "migration.downtime-limit: 5000 is out of range; use 0 to 2000"),
    ],
)
def test_migration_that_cannot_be(keys: str, said: str) -> None:
    old = "migration:\n  max-bandwidth: 500 MiB\n"
    assert old in EXPERIMENT
    (line,) = problems(EXPERIMENT.replace(old, f"migration: {{{keys}}}\n"))
    assert line.startswith(f"e.yaml:10: {said}")


@pytest.mark.parametrize(
    ("axis", "first", "second"),
    [
        ("guest.memory: [64 MiB, 65536 KiB]", "memory_bytes=65536 KiB", "memory_bytes=64 MiB"),
        ("guest.tracking: [null, bitmap]", "tracking=bitmap", "tracking=none"),
        ("migration.channel: [null, fd]", "channel=fd", "channel=none"),
        ("migration.clear-chunk: [null, 1 GiB]", "clear_chunk=1 GiB", "clear_chunk=none"),
        (
            "migration.auto-converge.initial: [20, 30]",
            "initial=30",
            "initial=20",
        ),
        (
            "a: {x: {migration.abort: null}, y: {migration.multifd: 0}, z: {migration.multifd: 2}}",
            "a=y",
            "a=x",
        ),
    ],
)
def test_cells_that_come_to_the_same(axis: str, first: str, second: str) -> None:
    """However they are written: a difference would be credited to a factor without a meaning."""
    text = with_matrix(f"matrix:\n  {axis}").replace("migration.abort: null", "verify: true")
    (said,) = problems(text)
    first, second = ((one.rpartition(".")[2] if "." in one else one) for one in (first, second))
    assert said.endswith(f"{first} comes to the same as {second}: one of them is enough")


def test_clear_chunks() -> None:
    """QEMU's own is told, too: a comparison with the bitmap depends on it."""
    text = with_matrix("matrix:\n  migration.clear-chunk: [256 KiB, 4 MiB, null]\n")
    cells = parse_experiment(text).cells
    assert [cell.parameters["clear_chunk"] for cell in cells] == [256 << 10, 4 << 20, 1 << 30]
    assert clear_chunk_arguments(256 << 10)[1] == "migration.x-clear-bitmap-shift=6"
    assert clear_chunk_arguments(1 << 30)[1] == "migration.x-clear-bitmap-shift=18"


@pytest.mark.parametrize("chunk", ["0", "128 KiB", "3 MiB", "16 TiB"])
def test_clear_chunks_that_qemu_would_change(chunk: str) -> None:
    (said,) = problems(with_matrix(f"matrix:\n  migration.clear-chunk: [{chunk}]\n"))
    assert said.endswith("must be a power of two from 256 KiB to 8 TiB")


def test_too_many_combinations_are_told_at_once() -> None:
    """Before any of them is made: 100 to the 20th."""
    values = list(range(100))
    axes = "".join(f"  guest.devices[0].properties.a{i}: {values}\n" for i in range(20))
    (said,) = problems(with_matrix(f"matrix:\n{axes}"))
    assert "e.yaml:12: matrix: has 10,000,000,000,000,000," in said
    assert said.endswith("combinations; 100,000 are the most that can be")


def test_too_many_runs() -> None:
    text = with_matrix(f"matrix: {{settle-seconds: {list(range(101))}}}\nrepeats: 10000")
    (said,) = problems(text)
    assert said == "e.yaml:13: repeats: makes 1,010,000 runs; 1,000,000 are the most that can be"


ANCHORS = """\
x-link: &link {max-bandwidth: 100 MiB, multifd: 2}
x-heap: &heap
  regions: [{name: heap, address: 16 MiB, size: 4 MiB}]
name: anchors
guest:
  memory: 64 MiB
  workload:
    <<: *heap
    streams: [{pattern: random}]
migration: {<<: *link, multifd: 4}
"""


def test_anchors_have_a_place_of_their_own_and_what_they_name_can_be_changed() -> None:
    (cell,) = parse_experiment(ANCHORS).cells
    assert cell.parameters["max_bandwidth"] == 100 << 20
    assert cell.parameters["multifd"] == 4
    assert cell.parameters["workload.bytes"] == 4 << 20
    jsonschema.validate(yaml.safe_load(ANCHORS), json_schema())
    wrong = ANCHORS.replace("multifd: 4", "multifd: 400")
    assert problems(wrong)[0].startswith("e.yaml:10: migration.multifd: must be less than")
    wrong = ANCHORS.replace("max-bandwidth: 100 MiB", "max-bandwith: 1")
    assert problems(wrong)[0].startswith("e.yaml:1: migration.max-bandwith: unknown key")


def test_all_mistakes_at_once() -> None:
    found = problems(EXPERIMENT.replace("random", "lop").replace("500 MiB", "fast"))
    assert [line.split(": ")[0] for line in found] == ["e.yaml:9", "e.yaml:11"]


def test_an_exclusion_without_effect() -> None:
    text = with_matrix("""\
matrix: {guest.tracking: [bitmap, ring:4096], migration.kind: [precopy, postcopy]}
exclude:
  - {guest.tracking: bitmap}
  - {guest.tracking: bitmap, migration.kind: postcopy}
  - {guest.tracking: ring:4096, migration.kind: postcopy}
""")
    assert names(text) == ["tracking=ring:4096, migration=precopy"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "e.yaml:1: an experiment is a mapping"),
        ("a: [", "e.yaml:1: no YAML"),
        ("guest: 5", "e.yaml:1: guest: must be a mapping, or the path of a file"),
        ("name: a", "e.yaml:1: guest: is missing"),
        ("guest: {}", "e.yaml:1: guest.memory: is missing"),
    ],
)
def test_no_experiment(text: str, message: str) -> None:
    assert problems(text)[0].startswith(message)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_experiment(tmp_path / "none.yaml")


def test_schema_accepts_what_is_accepted() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(EXPERIMENT), schema)
    for old, new in (("random", "lop"), ("repeats: 3", "repeat: 3"), ("500 MiB", "fast")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(EXPERIMENT.replace(old, new)), schema)


def test_published_schema_is_up_to_date() -> None:
    """Made by `qemu-ring experiment plan --schema`."""
    assert json.loads((FOLDER / "experiment.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    plan = load_experiment(path)
    assert plan.name == path.stem
    assert plan.description
    assert "$schema=experiment.schema.json" in plan.source
    jsonschema.validate(yaml.safe_load(plan.source), json_schema())


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
