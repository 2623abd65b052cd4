"""A person's own shell commands, run by their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtui.user.commands import Command
from tests.qtui import replay as r
from tests.qtui.driving import driving

DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


async def test_a_key_runs_a_command_with_layer_and_recipe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = f"(printf '%s\\n' {{layer}} {{model}} {{session}}; cat {{recipe}}) > {out}; echo sent"
    command = Command("send", run, "Send the recipe")
    async with driving(
        *r.opening(), *r.triaged(), commands=(command,), keymap={command.id: "f7"}
    ) as d:
        await d.pilot.press("f7")
        assert "no layer is changed" in d.screen()
        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        d.table.move_to(d.app.session.index[DOWN])
        layer = d.table.current
        await d.pilot.press("f7")
        await d.until(lambda: any("send: done: sent" in e.text for e in d.bench.events.entries))
    written = out.read_text().splitlines()
    assert written[:3] == [layer, "demo", "demo"]
    assert DOWN in out.read_text()
    assert list((tmp_path / "state").rglob("recipe.toml"))


async def test_a_command_that_fails_says_how() -> None:
    command = Command("bad", "echo first; echo no such box >&2; exit 3", "Bad")
    async with driving(*r.opening(), commands=(command,), keymap={command.id: "f7"}) as d:
        await d.pilot.press("f7")
        await d.until(lambda: "bad: exit code 3: no such box" in d.screen())
        assert any("bad: first" in entry.text for entry in d.bench.events.entries)
