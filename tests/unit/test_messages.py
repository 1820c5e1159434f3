"""What the library says: nothing of the command line's options, which its callers need not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "qemu_ring"
# A whole command may be advised, ours or another's, with its options.
COMMAND = re.compile(r"qemu-ring [a-z]+[^;]*|`[^`]*`|apt-get [^;]*|cc --version")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def raised(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts in what makes an error, with their lines."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        if not name.lower().endswith(("error", "unsuitable")):
            continue
        for argument in (*call.args, *(one.value for one in call.keywords)):
            yield argument.lineno, words(argument)


def words(node: ast.AST) -> str:
    """The text that stands in an expression, without what is filled in."""
    parts = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
    return " ".join(part for part in parts if isinstance(part, str))


def options_in(source: str) -> list[tuple[int, str]]:
    found = raised(ast.parse(source))
    return [(line, text) for line, text in found if OPTION.search(COMMAND.sub("", text))]


def test_errors_name_no_options() -> None:
    library = (path for path in PACKAGE.rglob("*.py") if "cli" not in path.parts)
    found = {
        f"{path.relative_to(PACKAGE)}:{line}": text
        for path in library
        for line, text in options_in(path.read_text())
    }
    assert found == {}


def test_an_option_is_found() -> None:
    assert options_in('raise UsageError("wrong", hint=f"see qemu-ring run --x {y}")') == []
    ((line, text),) = options_in('raise UsageError("no", hint=f"qemu-ring run --x; or --z {y}")')
    assert (line, text) == (1, "qemu-ring run --x; or --z ")
