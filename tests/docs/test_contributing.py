"""What the pages for contributors say of the code: its folders, its files, its examples."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qtui.actions
from qtui.actions import Action
from qtui.screens.help import Help
from qtui.screens.workbench.actions import WorkbenchActions
from tests.docs.reference import CONTRIBUTING, DOCS, with_excerpts
from tests.qtui import replay as r
from tests.qtui.driving import driving

ROOT = DOCS.parent
ARCHITECTURE = DOCS / "ARCHITECTURE.md"
PLACEHOLDERS = {"NAME", "MODEL"}
GLOSSARY = {"layer", "block", "unit", "kept", "restore", "recipe", "floor"}


def section(page: str, title: str) -> str:
    """What is below a heading, up to the next."""
    return re.split(r"^## ", page.split(f"## {title}\n")[1], maxsplit=1, flags=re.M)[0]


def first_cells(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]


def test_the_table_of_folders_names_every_folder_with_code_and_no_other() -> None:
    listed = [cell.strip("`") for cell in first_cells(section(ARCHITECTURE.read_text(), "Folders"))]
    folders = {
        str(path.parent.relative_to(ROOT))
        for top in ("engine", "qtui")
        for path in (ROOT / top).rglob("*.py")
    } - {"engine", "qtui"}
    assert sorted(listed) == sorted(folders)


@pytest.mark.parametrize(
    "page", [ARCHITECTURE, CONTRIBUTING, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name
)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(r"`((?:engine|qtui|tests|docs|themes)/[\w./-]*)`", text)
    paths = [path for path in named if not PLACEHOLDERS & set(re.split(r"[/.]", path))]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [CONTRIBUTING, *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name)
def test_every_link_to_a_heading_has_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
        there = (page.parent / target if target else page).read_text("utf-8")
        headings = re.findall(r"^#+ (.*)$", there, re.M)
        slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert anchor in slugs, f"{target}#{anchor}"


def test_the_glossary_has_the_words_that_a_newcomer_asks_for() -> None:
    table = section(ARCHITECTURE.read_text("utf-8"), "Glossary")
    words = {
        word.strip()
        for line in table.splitlines()
        if line.startswith("|")
        for word in line.split("|")[1].split(",")
    }
    assert words >= GLOSSARY


def test_excerpts_are_as_the_example_package_has_them() -> None:
    page = CONTRIBUTING.read_text("utf-8")
    assert with_excerpts(page) == page, "run `make docs`"
    assert page.count("<!-- from ") == 7


async def test_the_example_of_a_key_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"```python\n(.*?)```", section(CONTRIBUTING.read_text("utf-8"), "Add a key"), re.S
    )
    action, handlers = (
        eval(compile(ast.Expression(each.value), "an example", "eval"), {"Action": Action})
        for each in ast.parse(block).body
        if isinstance(each, ast.Expr)
    )
    monkeypatch.setattr(qtui.actions, "ACTIONS", (*qtui.actions.ACTIONS, action))
    monkeypatch.setattr(WorkbenchActions, "HANDLERS", {**WorkbenchActions.HANDLERS, **handlers})
    async with driving(*r.opening()) as d:
        await d.pilot.press(action.keys)
        await d.settled()
        assert d.app.session.index[d.table.current] == d.table.rows[len(d.table.rows) // 2]
        await d.pilot.press("question_mark")
        await d.until(lambda: isinstance(d.app.screen, Help))
        shown = "\n".join("".join(text for text, _ in line) for line in d.app.screen.lines)
        assert action.title in shown
