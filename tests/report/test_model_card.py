"""The model card of a written checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.recipes.file import read_recipe
from engine.report.model_card import model_card
from engine.session import Session
from tests.report.test_report import HOSTILE, full, hostile

ASKED = p.Export(out="/out", to="checkpoint")


def code_of(card: str, heading: str) -> str:
    """The lines of code after a heading."""
    after = card.partition(heading)[2].lstrip("\n").splitlines()
    lines = []
    for line in after:
        if line and not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines)


def test_the_recipe_in_the_card_reads_back(tmp_path: Path) -> None:
    session = full()
    recipe = session.recipe()
    assert recipe
    card = model_card(session, recipe, ASKED)
    file = tmp_path / "recipe.toml"
    file.write_text(code_of(card, "As a file, `recipe.toml`:"))
    read = read_recipe(file)
    held = {name: read.resolve(session).get(name, read.default) for name in recipe}
    assert held == recipe


def test_figures_are_those_measured_or_said_to_be_missing() -> None:
    session = full()
    card = model_card(session, session.recipe(), ASKED)
    assert "26.40 (" in card
    assert "97.0%" in card
    assert "64 of 256 tokens" in card
    other = model_card(session, {session.layers.names[0]: "int8"}, ASKED)
    assert "26.40" not in other
    assert "Not measured" in other


def test_the_command_writes_it_again() -> None:
    session = full()
    session.source = "org/base model"
    card = model_card(session, session.recipe(), ASKED)
    command = code_of(card, "## Command")
    assert command.startswith("qtui export 'org/base model'")
    assert command.strip().endswith("--recipe recipe.toml --to checkpoint -o PATH")
    assert "base_model" not in card
    session.source = "org/base"
    assert model_card(session, session.recipe(), ASKED).startswith("---\nbase_model: org/base\n")


def test_a_folder_is_no_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = full()
    session.source = "models/base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert "base_model" not in model_card(session, session.recipe(), ASKED)


def test_names_of_a_checkpoint_are_text() -> None:
    session: Session = hostile()
    assert session.checkpoint is not None
    session.checkpoint = msgspec.structs.replace(session.checkpoint, name=HOSTILE)
    session.source = HOSTILE
    recipe = dict.fromkeys(session.layers.names[:1], "int8")
    card = model_card(session, recipe, ASKED)
    assert all(line.isprintable() for line in card.splitlines())
    for line in card.splitlines():
        assert line.startswith("    ") or "<script" not in line.replace("\\<", "")


@pytest.mark.parametrize(
    ("source", "text", "said"),
    [
        ("{home}/base", "{home}/mine.txt", "qtui export base "),
        ("models/base", "{home}/stack:content", "qtui export base "),
        ("org/base", "org/data:train:text", "qtui export org/base "),
        ("demo", None, "qtui export demo "),
    ],
)
def test_folders_of_this_machine_are_not_in_the_card(
    source: str, text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    home = tmp_path / "home"
    session = full()
    session.source = source.format(home=home)
    text = None if text is None else text.format(home=home)
    session.settings = msgspec.structs.replace(session.settings, text=text, calib=text)
    card = model_card(session, session.recipe(), ASKED)
    command = code_of(card, "## Command")
    assert command.startswith(said)
    assert str(tmp_path) not in card
    if text is not None:
        last = text.rsplit("/", 1)[-1] if text.startswith("/") else text
        assert f"--text {last} --calib {last} " in command
