"""The generated parts of the documentation: commands, JSON documents, figures, excerpts of code.

    python -m tests.docs.reference

writes them between the markers of the pages; a test compares. An excerpt is marked by
``<!-- from PATH: NAME, NAME -->`` before its block, and is the source of these names in the file.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import typer.main
from typer.core import TyperArgument, TyperGroup

from engine.export.target import targets
from engine.recipes.file import KEYS
from engine.report import schema
from engine.report.figures import figures

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONTRIBUTING = DOCS.parent / "CONTRIBUTING.md"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

EXCERPT = re.compile(r"(<!-- from (\S+): ([\w, ]+) -->\n```python\n).*?(?=^```)", re.M | re.S)

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def attribute_docstrings(struct: type) -> dict[str, str]:
    """The string below each field of a Struct, as the source has it."""
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(struct))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _unwrapped(hint: Any) -> tuple[list[Any], bool]:
    """The alternatives of a type, and whether its key may be missing."""
    parts = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    return [part for part in parts if part is not msgspec.UnsetType], msgspec.UnsetType in parts


def _inside(hint: Any) -> tuple[str, Any]:
    """What a container adds to a path, and what it holds."""
    if get_origin(hint) is list:
        return "[]", get_args(hint)[0]
    if get_origin(hint) is dict:
        return ".*", get_args(hint)[1]
    return "", hint


def _type_name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin in (list, tuple, dict):
        inner = ", ".join(_type_name(each) for each in args if each is not Ellipsis)
        return f"{'object' if origin is dict else 'array'} of {inner.split(', ')[-1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(each) for each in args)
    return "null" if hint is type(None) else PLAIN.get(hint, "object")


def keys(struct: type, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and meaning of every key of a document."""
    said, hints = attribute_docstrings(struct), get_type_hints(struct)
    for name in struct.__struct_fields__:  # type: ignore[attr-defined]
        parts, optional = _unwrapped(hints[name])
        suffix, inner = _inside(parts[0])
        here = f"{path}{name}"
        meaning = said.get(name, "")
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            first = (inner.__doc__ or "").split("\n")[0]
            yield f"{here}{suffix}", "may be missing" if optional else "", meaning or first
            yield from keys(inner, f"{here}{suffix}.")
        else:
            kinds = " or ".join(_type_name(part) for part in parts)
            yield here, kinds + (", may be missing" if optional else ""), meaning


def json_reference() -> str:
    """Every document of `engine.report.schema`, a table of keys each."""
    lines: list[str] = []
    for document in get_args(schema.Document):
        tag = document.__struct_config__.tag
        lines += [f"## {tag}", "", document.__doc__.split("\n")[0], ""]
        lines += ["| key | type | meaning |", "|---|---|---|"]
        lines.append(f"| `schema` | `{tag}` | |")
        lines += [f"| `{path}` | {kind} | {said} |" for path, kind, said in keys(document)]
        lines.append("")
    return "\n".join(lines).replace(" | | |", " | | |")


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def command_reference() -> str:
    """Every command with its options, as ``--help`` has them."""
    from qtui.cli.command_line import command_line
    from qtui.cli.commands import COMMANDS

    group = typer.main.get_command(command_line(COMMANDS))
    assert isinstance(group, TyperGroup)
    lines: list[str] = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        given = [each for each in command.params if isinstance(each, TyperArgument)]
        words = " ".join(["qtui", name, *(str(each.metavar) for each in given)])
        about = inspect.cleandoc(command.help or "").split("\f")[0]
        lines += [f"## `{words}`", "", about, "", "| option | meaning |", "|---|---|"]
        for option in command.params:
            if option in given:
                continue
            typed = ", ".join(option.opts)
            metavar = f" {option.metavar}" if option.metavar else ""
            help = _escaped(getattr(option, "help", None) or "")
            lines.append(f"| `{_escaped(typed + metavar)}` | {help} |")
        lines.append("")
    return "\n".join(lines)


def figure_reference() -> str:
    """Every figure of a layer, and where it appears."""
    lines = [
        "| figure | what it is | unit | column | filter | JSON | CSV | experts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in figures():
        filter = f"`{each.id}{each.filter.example}`" if each.filter else ""
        paths = ", ".join(f"{path.document} `{path.path}`" for path in each.json)
        csv = f"`{each.csv.name}`" if each.csv else ""
        row = [
            f"`{each.id}`", each.help, each.quantity.unit, "yes" if each.column else "", filter,
            paths, csv, "yes" if each.experts else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(_escaped, row)) + " |")
    return "\n".join(lines)


def recipe_reference() -> str:
    """The keys of a recipe file."""
    lines = ["| key | what it is |", "|---|---|"]
    lines += [f"| `{key}` | {_escaped(about)} |" for key, about in KEYS.items()]
    return "\n".join(lines)


def export_targets() -> str:
    """Every export target: what it is, and what it does otherwise."""
    lines = ["| `--to` | what is written | note |", "|---|---|---|"]
    for target in targets():
        said = [target.differs, f"{target.why_alike}"
                if target.why_alike else ""]  # fmt: skip
        note = "; ".join(part for part in said if part)
        lines.append(f"| `{target.name}` | {_escaped(target.help)} | {_escaped(note)} |")
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "figures.md": figure_reference,
    "json.md": json_reference,
    "recipes.md": recipe_reference,
    "shipping.md": export_targets,
    "command-line.md": command_reference,
}


def with_reference(page: str, made: str) -> str:
    """A page with what stands between its markers made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{made.rstrip()}\n\n{END}{after}"


def excerpt(path: Path, names: Iterable[str]) -> str:
    """The source of functions, classes and assignments of a module, in the order of ``names``.

    Raises:
        KeyError: the module has none of that name.
    """
    source = path.read_text("utf-8")
    lines = source.splitlines()
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                begin = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            case ast.Assign(targets=[ast.Name(id=name)]):
                begin = node.lineno
            case _:
                continue
        found[name] = "\n".join(lines[begin - 1 : node.end_lineno])
    return "\n\n\n".join(found[name] for name in names)


def with_excerpts(page: str) -> str:
    """A page with its excerpts as the sources have them."""

    def block(marked: re.Match[str]) -> str:
        head, path, names = marked.groups()
        return f"{head}# {path}\n{excerpt(DOCS.parent / path, names.split(', '))}\n"

    return EXCERPT.sub(block, page)


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        path = DOCS / name
        path.write_text(with_reference(path.read_text("utf-8"), make()), "utf-8")
    CONTRIBUTING.write_text(with_excerpts(CONTRIBUTING.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
