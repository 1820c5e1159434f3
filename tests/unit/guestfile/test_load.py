"""Descriptions in YAML: what they mean, and how mistakes in them are told."""

from __future__ import annotations

import itertools
from pathlib import Path

import jsonschema
import pytest
import yaml

from qemu_ring.dirty import Tracking
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.guest import Pattern, Span
from qemu_ring.guestfile import GuestFileError, json_schema, load_guest, parse_guest
from qemu_ring.guestfile.interpretation import memory_sizes, workload
from qemu_ring.memslot import FlushPolicy

MIB = 1 << 20
EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "guests").glob("*.yaml"))

GUEST = """\
memory: 64 MiB
vcpus: 3
tracking: ring:4096
flush-policy: read-only
slots:
  - name: slot
    size: 2M
    address: 1 GiB
workload:
  regions:
    - {name: ram, address: 16 MiB, size: 8 MiB}
    - {name: bar, slot: slot}
  streams:
    - pattern: loop
      region: bar
      first: 16
      pages-per-second: 1000
    - {pattern: hot-cold, hot: {pages: 4, region: bar}}
"""


def problems(text: str, *assignments: str) -> tuple[str, ...]:
    with pytest.raises(GuestFileError) as caught:
        parse_guest(text, assignments, name="g.yaml")
    assert caught.value.exit_status is ExitStatus.USAGE
    return caught.value.problems


def changed(old: str, new: str) -> str:
    assert old in GUEST
    return GUEST.replace(old, new)


def test_description_and_its_meaning() -> None:
    guest = parse_guest(GUEST)
    assert guest.tracking == Tracking(4096)
    assert guest.flush_policy is FlushPolicy.READ_ONLY
    assert memory_sizes(guest) == {"ram": 64 * MIB, "slot": 2 * MIB}
    found = workload(guest)
    assert found is not None
    assert [(r.name, r.address, r.size) for r in found.regions] == [
        ("ram", 16 * MIB, 8 * MIB),
        ("bar", 1 << 30, 2 * MIB),
    ]
    loop, hot, idle = found.streams
    assert (loop.pattern, loop.span, loop.pages_per_second) == (
        Pattern.LOOP,
        Span(2048 + 16, 512 - 16),
        1000,
    )
    assert (hot.span, hot.hot) == (Span(0, 2048), Span(2048, 4))
    assert idle.pattern is Pattern.IDLE


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_right_for_us_and_for_editors(path: Path) -> None:
    load_guest(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            changed("pattern: loop", "pattern: lop"),
            'g.yaml:14: workload.streams[0].pattern: unknown pattern "lop"; known: idle, once',
        ),
        (changed("64 MiB", "64 MX"), "g.yaml:1: memory: '64 MX' is no size"),
        (changed("memory: 64 MiB\n", ""), "g.yaml:1: memory: is missing"),
        (changed("vcpus: 3", "vcpus: two"), "g.yaml:2: vcpus: must be a valid integer, not 'two'"),
        (changed("vcpus: 3", "vcpus: yes"), "g.yaml:2: vcpus: must be a valid integer, not True"),
        (changed("vcpus: 3", "vcpu: 3"), "g.yaml:2: vcpu: unknown key; known: memory, "),
        (changed("vcpus: 3", "vcpus: 1"), "g.yaml:13: workload.streams: there are more than the 1"),
        (changed("4096", "5000"), "g.yaml:3: tracking: ring size 5000 is no power of two"),
        (changed("read-only", "rw"), 'g.yaml:4: flush-policy: unknown flush policy "rw"; known: '),
        (changed("    size: 2M\n", ""), "g.yaml:6: slots[0].size: is missing"),
        (changed("size: 2M", "size: 3M"), "g.yaml:7: slots[0].size: must be a power of two"),
        (changed("1 GiB", "1025 MiB"), "g.yaml:8: slots[0].address: must be a multiple"),
        (changed("1 GiB", "32 MiB"), "g.yaml:8: slots[0].address: is where there is other memory"),
        (changed("    address: 1 GiB\n", ""), "g.yaml:6: slots[0].address: is missing"),
        (changed("slot: slot", "slot: sloth"), "g.yaml:12: workload.regions[1]: no slot is called"),
        (
            changed("size: 8 MiB", "size: 49 MiB"),
            "g.yaml:11: workload.regions[0]: it is not all",
        ),
        (
            changed("address: 16 MiB", "adress: 0"),
            "regions[0].adress: unknown key; known: name",
        ),
        (
            changed("region: bar\n", "region: foo\n"),
            'streams[0]: no region is called "foo"; known',
        ),
        (
            changed("first: 16", "first: 512"),
            "g.yaml:14: workload.streams[0]: it leaves region",
        ),
        (
            changed("second: 1000", "second: -1"),
            "g.yaml:17: workload.streams[0].pages-per-second",
        ),
        (
            changed("flush-policy: read-only", "accelerator: tcg"),
            "g.yaml:3: tracking: is for the accelerator kvm",
        ),
        (GUEST + "linux: {}", "g.yaml:19: linux: cannot be with workload"),
        (GUEST + "firmware: none.bin", "g.yaml:19: firmware: "),
        (GUEST + "disks:\n- path: none\n", "g.yaml:20: disks[0].path: "),
        (
            GUEST + "devices: [{driver: x, properties: {y: [1]}}]",
            "devices[0].properties.y: [1] is no",
        ),
        (GUEST + "fw-cfg: {opt/a: {}}", "g.yaml:19: fw-cfg.opt/a: needs either text or file"),
        (GUEST + "backends: [{id: slot, size: 1M}]", 'backends[0].id: "slot" is the name of'),
        (
            "memory: 90M\nlinux: {workload: {size: 1M}}",
            "g.yaml:2: linux.workload.size: leaves Linux",
        ),
        (
            "memory: 64M\nslots: [{name: a, size: 1M, address: 1G}]",
            "g.yaml:2: slots[0].address: is",
        ),
        (GUEST + "memory: 1 GiB", "g.yaml:19: memory: is there twice"),
        ("<<: {vcpus: 1}\nvcpus: 2\nvcpus: 3", "g.yaml:3: vcpus: is there twice"),
        ("<<: 5", "g.yaml:1: <<: needs a mapping, or a list of mappings"),
        ("a: &a {}\n<<: [*a, 5]", "g.yaml:2: <<: needs a mapping, or a list of mappings"),
        ("a: &a {<<: *a}", "g.yaml:1: no YAML: it is nested without end"),
        ("cpu: 2020-13-45", "g.yaml:1:6: cpu: '2020-13-45' is no timestamp; put a word into"),
        (
            'memory: 1M\nvcpus: !!int "x"',
            "g.yaml:2:8: vcpus: 'x' is no int; put a word into quotes",
        ),
        ('vcpus: !!int ""', "g.yaml:1:8: vcpus: '' is no int; put a word into quotes"),
        ("cpu: !!bool x", "g.yaml:1:6: cpu: 'x' is no bool; put a word into quotes"),
        ("cpu: !!timestamp x", "g.yaml:1:6: cpu: 'x' is no timestamp; put a word into quotes"),
        ("2020-13-45: x", "g.yaml:1:1: '2020-13-45' is no timestamp; put a word into quotes"),
        (f"memory: {'9' * 5000}", "g.yaml:1:9: memory: '9999999999"),
        (f"memory: {'9' * 5000} T", "g.yaml:1: memory: '99999999"),
        ("memory: 8388608 T", "g.yaml:1: memory: '8388608 T' is too much; use less than 8 EiB"),
        (f"memory: {1 << 63}", "g.yaml:1: memory: is too much; use less than 8 EiB"),
        ("memory: 67112960", "g.yaml:1: memory: must be a multiple of 8 KiB"),
        ("memory: 0", "g.yaml:1: memory: must be a multiple of 8 KiB"),
        (
            GUEST + "backends: [{id: b, size: 5000}]",
            ": backends[0].size: must be whole pages of 4 KiB",
        ),
        (
            changed("second: 1000", "second: 0.0000001"),
            "per_second must be 0.000001 or more; use IDLE",
        ),
        (changed("64 MiB", "yes"), "g.yaml:1: memory: true is no number of bytes; use such as"),
        (changed("second: 1000", "second: .inf"), "per-second: must be a finite number, not inf"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(
                f"{one}: &{one} [{', '.join(f'*{before}' for _ in range(10))}]\n"
                for before, one in itertools.pairwise("abcdefghijklmnop")
            ),
            "no YAML document of ours: it has more than 200,000 parts",
        ),
        ("memory: [64\nvcpus: 1\n", "g.yaml:2: no YAML: expected"),
        ("memory: 64 MiB\non: 1", "g.yaml:2: a key must be a word"),
        ("memory: 64 MiB\nextra: [\x01]", "g.yaml:2: no YAML: special characters"),
        ("a: &a [*a]", "g.yaml:1: no YAML: it is nested without end"),
        ("a: !!python/name:os.system x", "g.yaml:1: no YAML: could not determine"),
        ("", "g.yaml:1: a guest is a mapping"),
        ("- 1", "g.yaml:1: a guest is a mapping"),
    ],
)
def test_mistakes_are_told_in_one_line_with_file_line_and_field(text: str, expected: str) -> None:
    found = problems(text)
    assert expected in found[0]
    assert "\n" not in found[0]
    assert len(found) == 1


def test_all_mistakes_are_told_in_the_order_of_the_file() -> None:
    text = "vcpus: 0\nmemory: much\nextra: [1]\nhue: red\n"
    found = problems(text)
    assert [line.split(":")[1] for line in found] == ["1", "2", "3", "4"]
    with pytest.raises(UsageError, match=r"^g:1: vcpus: .* \(and 3 more\)$"):
        parse_guest(text, name="g")


def test_a_merge_key_gives_what_is_not_there_otherwise() -> None:
    text = """\
memory: 64 MiB
workload:
  regions:
    - &a {name: a, address: 16 MiB, size: 8 MiB}
    - &b {<<: *a, name: b, address: 32 MiB}
    - {<<: [*b, *a], name: c, size: 4 MiB}
  streams: [{pattern: loop}]
backends:
  - &first {id: x, size: 1 MiB}
  - &second {<<: *first, id: y}
  - {<<: *second, id: z}
"""
    guest = parse_guest(text)
    assert guest.workload is not None
    assert [(r.name, r.address, r.size) for r in guest.workload.regions] == [
        ("a", 16 * MIB, 8 * MIB),
        ("b", 32 * MIB, 8 * MIB),
        ("c", 32 * MIB, 4 * MIB),
    ]
    assert [one.id for one in guest.backends] == ["x", "y", "z"]
    (found,) = problems(text.replace("id: z", "id: z, size: x"))
    assert found.startswith("g.yaml:11: backends[2].size: 'x' is no size")


def test_an_alias_to_a_mapping_that_merges() -> None:
    """It is come upon twice."""
    text = "memory: 64 MiB\ndevices:\n- &a {driver: x}\n- &b {<<: *a, driver: y}\n- *b\n"
    assert [one.driver for one in parse_guest(text).devices] == ["x", "y", "y"]


def test_assignments_are_put_over_the_file() -> None:
    guest = parse_guest(
        GUEST,
        [
            "memory=1 GiB",
            "slots[0].address=0x80000000",
            "workload.streams.0.seed=7",
            "workload.regions[0]={name: ram, address: 1 MiB, size: 4 KiB}",
            "tracking=bitmap",
            "flush-policy=null",
            "accelerator-properties.kernel-irqchip=split",
        ],
    )
    assert guest.memory == 1 << 30
    assert guest.slots[0].address == 2 << 30
    assert guest.workload is not None
    assert guest.workload.streams[0].seed == 7
    assert guest.workload.regions[0].size == 4096
    assert guest.tracking == Tracking()
    assert guest.flush_policy is None
    assert guest.accelerator_properties == {"kernel-irqchip": "split"}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("vcpus=none", "--set vcpus=none: vcpus: must be a valid integer, not 'none'"),
        ("vcpus", "--set vcpus: give it as KEY=VALUE"),
        ("=1", "--set =1: give it as KEY=VALUE"),
        ("slots[1].size=1M", "--set slots[1].size=1M: there is no slots[1]"),
        ("memory.size=1M", "--set memory.size=1M: there is no memory.size"),
        ("vcpus=[", "--set vcpus=[: '[' is no YAML value"),
        ("vcpus=2020-13-45", "--set vcpus=2020-13-45: '2020-13-45' is no YAML value"),
        ("vcpus=!!int x", "--set vcpus=!!int x: '!!int x' is no YAML value"),
        ("workload.streams[0]={pattern: lop}", "}: workload.streams[0].pattern: unknown pattern"),
    ],
)
def test_wrong_assignments(assignment: str, expected: str) -> None:
    (found,) = problems(GUEST, assignment)
    assert expected in found


def test_ram_above_the_hole_can_be_written() -> None:
    text = changed("64 MiB", "4 GiB").replace("16 MiB, size: 8", "{}, size: 8")
    text = text.replace("address: 1 GiB", "address: 3328 MiB").replace("{}", "{0}")
    assert parse_guest(text.replace("{0}", "4 GiB"))
    (found,) = problems(text.replace("{0}", "3072 MiB"))
    assert "it is not all in RAM" in found
    assert parse_guest(text.replace("{0}", "2048 MiB"))
    (found,) = problems(text.replace("{0}", "2048 MiB"), "machine=q35")
    assert "it is not all in RAM" in found


def test_paths_are_seen_from_the_description(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"")
    (tmp_path / "guest.yaml").write_text("memory: 1 MiB\ndisks: [{path: disk.img}]\n")
    assert load_guest(tmp_path / "guest.yaml").disks[0].path == tmp_path / "disk.img"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_guest(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"memory: \xff")
    with pytest.raises(UsageError, match="1: no YAML: it is not UTF-8"):
        load_guest(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "text",
    [
        changed("pattern: loop", "pattern: lop"),
        changed("64 MiB", "64 MX"),
        changed("memory: 64 MiB\n", ""),
        changed("vcpus: 3", "vcpu: 3"),
        changed("vcpus: 3", "vcpus: 0"),
        changed("tracking: ring:4096", "tracking: log"),
        GUEST + "devices: [{driver: x, properties: {y: [1]}}]",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    jsonschema.validate(yaml.safe_load(GUEST), json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json_schema())
