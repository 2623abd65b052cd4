"""Every private name of Textual that qtui uses is in the installed release, and in one module."""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import sys
from importlib import import_module
from pathlib import Path

import pytest
import textual
from textual import timer
from textual.app import App

import qtui
from qtui import textual_internals
from qtui.textual_internals import call_after

PACKAGE = Path(qtui.__file__).parent
FOREIGN = ("textual", "rich", "plotext")


@pytest.mark.parametrize("path", textual_internals.USED)
def test_textual_still_has(path: str) -> None:
    parts = path.split(".")
    length = next(n for n in range(len(parts), 0, -1) if _is_module(".".join(parts[:n])))
    owner: object = import_module(".".join(parts[:length]))
    *classes, name = parts[length:]
    for each in classes:
        owner = getattr(owner, each)
    # An attribute of instances alone is found where it is set.
    there = hasattr(owner, name) or f"self.{name}" in inspect.getsource(owner)  # type: ignore[arg-type]
    assert there, (
        f"Textual {textual.__version__} has no {path}; without it: {textual_internals.USED[path]}"
    )


def _is_module(path: str) -> bool:
    try:
        import_module(path)
    except ModuleNotFoundError:
        return False
    return True


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _foreign_names() -> set[str]:
    """Private attributes that Textual and Rich give their own objects."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in FOREIGN and (file := getattr(module, "__file__", None)):
            for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and _private(node.attr):
                    found.add(node.attr)
    return found


def _own_names(tree: ast.AST) -> set[str]:
    """Private names that a module defines or sets itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_no_other_module_uses_private_names_of_textual_rich_or_plotext() -> None:
    foreign = _foreign_names() - {"_replace", "_exit"}  # of named tuples, of os
    assert {"_compositor", "_bindings", "_suggestion"} <= foreign
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "textual_internals.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = _own_names(tree)
        for node in ast.walk(tree):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and _private(node.attr):
                assert node.attr in own or node.attr not in foreign, f"{where}: {node.attr}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                names = [*str(node.module).split("."), *(each.name for each in node.names)]
                assert not any(map(_private, names)), f"{where}: {ast.unparse(node)}"


def test_every_private_name_in_the_module_is_listed() -> None:
    tree = ast.parse(inspect.getsource(textual_internals))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and "textual" in str(node.module):
            private_module = any(map(_private, str(node.module).split(".")))
            used |= {each.name for each in node.names if private_module or _private(each.name)}
    private = {name for name in used if _private(name) or name in ("dispatch_key", "XTermParser")}
    private -= {"_handle_key", "_paint_now"}
    listed = {path.rsplit(".", 1)[-1] for path in textual_internals.USED}
    assert private <= listed


async def test_a_call_comes_though_the_machine_is_too_busy_for_its_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app: App[None] = App()
    async with app.run_test() as pilot:
        clock = itertools.count()  # a second passes between any two looks at it
        monkeypatch.setattr(timer._time, "get_time", lambda: float(next(clock)))
        dropped, called = asyncio.Event(), asyncio.Event()
        lost = app.set_timer(0.001, dropped.set)
        call_after(app, 0.001, called.set)
        await asyncio.sleep(0)  # both begin
        monkeypatch.undo()
        await asyncio.wait_for(called.wait(), 20)
        assert lost._task is not None
        await lost._task
        await pilot.pause()
        assert not dropped.is_set(), "Textual no longer drops it: `call_after` can go"


def test_every_call_after_some_time_is_one_that_comes() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "textual_internals.py":
            assert "set_timer" not in path.read_text(encoding="utf-8"), path
