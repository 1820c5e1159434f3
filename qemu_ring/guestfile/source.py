"""YAML as data that remembers which line each part of it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from qemu_ring.guestfile.errors import GuestFileError

__all__ = ["Path", "YamlSource", "dotted"]

Path = tuple[str | int, ...]
"""Keys and indices from the top of a document to one part of it."""

_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]
_MERGE = "tag:yaml.org,2002:merge"
_MOST_PARTS = 200_000  # a few lines of aliases of aliases could make millions
_NO_SUCH_VALUE = (ArithmeticError, AttributeError, LookupError, ValueError)
"""What PyYAML's constructors raise for a word that is not what it looks like: 2020-13-45."""
_STEP = re.compile(r"[^.\[\]]+")


@dataclass(slots=True)
class YamlSource:
    """A document, and where its parts are.

    Args:
        name: of its file, for messages.
        data: mappings, lists and scalars.
        places: "FILE:LINE" of each part, or what else it comes from.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, name: str) -> YamlSource:
        """Read a document.

        Raises:
            GuestFileError: it is no YAML, or not a mapping.
        """
        source = cls(name)
        try:
            loader = yaml.SafeLoader(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise GuestFileError([f"{name}:{line}: no YAML: {error.reason}"]) from error
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise GuestFileError([f"{name}:1: a guest is a mapping, such as `memory: 64 MiB`"])
            source.data = _Reader(source, loader).value(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise GuestFileError([f"{name}:{line}: no YAML: {error.problem}"]) from error
        except yaml.YAMLError as error:
            raise GuestFileError([f"{name}:1: no YAML: {' '.join(str(error).split())}"]) from error
        except RecursionError:
            raise GuestFileError([f"{name}:1: no YAML: it is nested without end"]) from None
        finally:
            loader.dispose()
        return source

    def set(self, assignment: str) -> None:
        """Replace or add one part, as `--set KEY=VALUE` does: `workload.streams[0].seed=2`.

        Raises:
            GuestFileError: it is no assignment, or its key leads nowhere.
        """
        place = f"--set {assignment}"
        key, equals, text = assignment.partition("=")
        path: Path = tuple(
            int(step) if step.isdecimal() else step for step in _STEP.findall(key.strip())
        )
        if not equals or not path:
            raise GuestFileError([f"{place}: give it as KEY=VALUE, such as vcpus=2"])
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, *_NO_SUCH_VALUE):
            raise GuestFileError([f"{place}: {text!r} is no YAML value"]) from None
        part: Any = self.data
        for depth, step in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(part, dict) and isinstance(step, str):
                part = _put(part, step, value) if last else part.setdefault(step, {})
            elif isinstance(part, list) and isinstance(step, int) and step < len(part):
                part = _put(part, step, value) if last else part[step]
            else:
                raise GuestFileError([f"{place}: there is no {dotted(path[: depth + 1])}"])
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = place

    def error(self, problems: Iterable[tuple[Path, str]]) -> GuestFileError:
        """The error that tells what is wrong, and where, in the document's order."""
        order = list(self.places)
        found = [(self._placed(path), path, message) for path, message in problems]
        found.sort(key=lambda problem: order.index(problem[0]))
        lines = [_line(self.places[placed], path, text) for placed, path, text in found]
        return GuestFileError(list(dict.fromkeys(lines)))

    def _placed(self, path: Path) -> Path:
        """The part itself where its place is known, else the nearest that it is in."""
        return next(p for n in range(len(path), -1, -1) if (p := path[:n]) in self.places)


class _Reader:
    """Makes data of YAML's nodes, and notes where each part of it is.

    Args:
        source: what it fills in.
        loader: of the nodes.
    """

    def __init__(self, source: YamlSource, loader: yaml.SafeLoader) -> None:
        self._name = source.name
        self._places = source.places
        self._loader = loader
        self._read: dict[int, _Pairs] = {}

    def value(self, node: yaml.Node, path: Path) -> Any:
        """What a node stands for."""
        if len(self._places) > _MOST_PARTS:
            said = f"no YAML document of ours: it has more than {_MOST_PARTS:,} parts"
            raise self._wrong(node, (), said)
        self._places.setdefault(path, f"{self._name}:{node.start_mark.line + 1}")
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key, (key_node, value_node) in self._pairs(node, path).items():
                self._places[(*path, key)] = f"{self._name}:{key_node.start_mark.line + 1}"
                found[key] = self.value(value_node, (*path, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, (*path, index)) for index, one in enumerate(node.value)]
        return self._scalar(node, path)

    def _pairs(self, node: yaml.MappingNode, path: Path) -> _Pairs:
        """Nodes of a mapping by key: its own, and those that a merge key (<<) brings else.

        Not PyYAML's merging: that one takes a key that is there twice for another's.
        """
        if id(node) in self._read:
            return self._read[id(node)]
        own: _Pairs = {}
        merged: _Pairs = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for one in self._to_merge(value_node, path):
                    merged = self._pairs(one, path) | merged  # the earlier ones count
                continue
            key = self._key(key_node, path)
            if key in own:
                raise self._wrong(key_node, (*path, key), "is there twice")
            own[key] = key_node, value_node
        self._read[id(node)] = merged | own
        return self._read[id(node)]

    def _to_merge(self, node: yaml.Node, path: Path) -> list[yaml.MappingNode]:
        named = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(one, yaml.MappingNode) for one in named):
            raise self._wrong(node, (*path, "<<"), "needs a mapping, or a list of mappings")
        return list(named)

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._loader.construct_object(node)
        except _NO_SUCH_VALUE:
            mark, kind = node.start_mark, node.tag.rpartition(":")[2]
            place = f"{self._name}:{mark.line + 1}:{mark.column + 1}"
            said = f"{node.value[:40]!r} is no {kind}; put a word into quotes"
            raise GuestFileError([_line(place, path, said)]) from None

    def _key(self, node: yaml.Node, path: Path) -> str:
        key = self._scalar(node, path) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise self._wrong(node, path, "a key must be a word")
        return key

    def _wrong(self, node: yaml.Node, path: Path, message: str) -> GuestFileError:
        place = f"{self._name}:{node.start_mark.line + 1}"
        return GuestFileError([_line(place, path, message)])


def _line(place: str, path: Path, message: str) -> str:
    return ": ".join(filter(None, (place, dotted(path), message)))


def _put(part: Any, step: str | int, value: Any) -> Any:
    part[step] = value
    return value


def dotted(path: Path) -> str:
    """`workload.streams[0].pattern`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
