"""What a QEMU's QMP offers, asked of QEMU itself: probe features, never guess from a version."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from pydantic import BaseModel, ConfigDict, RootModel

__all__ = ["Schema"]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=lambda name: name.replace("_", "-")
    )


class _Member(_Model):
    """An object's member, an enum's value (no type) or an alternate's branch (no name)."""

    name: str = ""
    type: str = ""


class _Variant(_Model):
    case: str
    type: str


class _Entity(_Model):
    """One entry of the reply; which fields are set depends on the meta-type."""

    name: str
    meta_type: str
    members: tuple[_Member, ...] = ()
    variants: tuple[_Variant, ...] = ()
    values: tuple[str, ...] = ()
    element_type: str = ""
    arg_type: str = ""
    ret_type: str = ""
    features: tuple[str, ...] = ()


class Schema(RootModel[tuple[_Entity, ...]]):
    """The reply to ``query-qmp-schema``, with its numbered types resolved.

    Whatever this QEMU does not know has no arguments, values or features: the answer is empty,
    never an error. A path names members from the outside in. It looks into arrays, alternates
    and every variant of an object, so ``("capabilities", "capability")`` is the member
    ``capability`` of the elements of the argument ``capabilities``.
    """

    model_config = ConfigDict(frozen=True)

    def has_command(self, name: str) -> bool:
        """Tell whether this QEMU has the command."""
        return name in self._commands

    def has_event(self, name: str) -> bool:
        """Tell whether this QEMU can send the event."""
        return name in self._events

    def command_arguments(self, name: str, *path: str) -> frozenset[str]:
        """Name the command's arguments, or the members of the argument at the path."""
        return self._member_names(self._argument_types(name, path))

    def command_returns(self, name: str, *path: str) -> frozenset[str]:
        """Name the members of what the command returns, or of its member at the path."""
        command = self._commands.get(name)
        return self._member_names(self._resolve(command.ret_type if command else "", path))

    def command_features(self, name: str) -> frozenset[str]:
        """Name the command's features, such as ``deprecated`` or ``unstable``."""
        command = self._commands.get(name)
        return frozenset(command.features if command else ())

    def enum_values(self, command: str, *path: str) -> frozenset[str]:
        """List the values that the command's argument at the path may take, if it is an enum.

        Whether the capability dirty-limit is known::

            "dirty-limit" in schema.enum_values(
                "migrate-set-capabilities", "capabilities", "capability"
            )
        """
        enums = [e for e in self._argument_types(command, path) if e.meta_type == "enum"]
        # `values` is deprecated and may go away; QEMU before 6.2 has nothing else.
        listed = (e.values or tuple(member.name for member in e.members) for e in enums)
        return frozenset(value for values in listed for value in values)

    def _argument_types(self, command: str, path: tuple[str, ...]) -> list[_Entity]:
        entity = self._commands.get(command)
        return self._resolve(entity.arg_type if entity else "", path)

    def _resolve(self, type_name: str, path: tuple[str, ...]) -> list[_Entity]:
        """Find the plain types, neither arrays nor alternates, that the path leads to."""
        types = list(self._plain(type_name, set()))
        for step in path:
            inner = [m.type for t in types for m in self._members(t) if m.name == step]
            seen: set[str] = set()
            types = [plain for name in inner for plain in self._plain(name, seen)]
        return types

    def _plain(self, type_name: str, seen: set[str]) -> Iterator[_Entity]:
        """Look through arrays and alternates, which may lead back to themselves."""
        entity = self._types.get(type_name)
        if entity is None or type_name in seen:
            return
        seen.add(type_name)
        if entity.meta_type == "array":
            yield from self._plain(entity.element_type, seen)
        elif entity.meta_type == "alternate":
            for branch in entity.members:
                yield from self._plain(branch.type, seen)
        else:
            yield entity

    def _members(self, entity: _Entity) -> Iterator[_Member]:
        """Yield an object's own members and those of all its variants, which are objects."""
        if entity.meta_type != "object":
            return
        yield from entity.members
        for variant in entity.variants:
            branch = self._types.get(variant.type)
            yield from branch.members if branch else ()

    def _member_names(self, entities: list[_Entity]) -> frozenset[str]:
        return frozenset(m.name for entity in entities for m in self._members(entity))

    # A command may bear a type's name (both are just names here), so each kind has its table.

    @cached_property
    def _commands(self) -> dict[str, _Entity]:
        return {e.name: e for e in self.root if e.meta_type == "command"}

    @cached_property
    def _events(self) -> dict[str, _Entity]:
        return {e.name: e for e in self.root if e.meta_type == "event"}

    @cached_property
    def _types(self) -> dict[str, _Entity]:
        return {e.name: e for e in self.root if e.meta_type not in {"command", "event"}}
