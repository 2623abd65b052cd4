"""A person's own keys: read strictly, and taken up by Textual."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.binding import Binding, BindingType

from qtui.user.keymap import (
    NAMES,
    UNBOUND,
    Keymap,
    KeymapError,
    key_name,
    keymap_path,
    keymap_template,
    read_keymap,
)

ACTIONS = {
    "up": "up,k",
    "sweep": "s",
    "order": "o",
    "undo": "u",
    "redo": "U,ctrl+r",
    "filter": "slash",
    "hold.4": "4",
    "help": "question_mark",
    "quit": "q",
    "interrupt": "ctrl+c",
    "suspend": "ctrl+z",
    "theme": "T",
    "quiet": "",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keymap.toml"


def read(path: Path, text: str) -> dict[str, str]:
    path.write_text("[keys]\n" + text, encoding="utf-8")
    return dict(read_keymap(path, ACTIONS).keys)


# --- reading --------------------------------------------------------------------------------------


def test_no_file_changes_nothing(path: Path) -> None:
    assert read_keymap(path, ACTIONS) == Keymap()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('sweep = "f5"', {"sweep": "f5"}),
        ('sweep = ["f5", "S"]', {"sweep": "f5,S"}),
        ('sweep = "?"\nhelp = "f1"', {"sweep": "question_mark", "help": "f1"}),
        ('sweep = ","', {"sweep": "comma"}),
        ('sweep = "+"', {"sweep": "plus"}),
        ('sweep = "-"', {"sweep": "minus"}),
        ('sweep = " "', {"sweep": "space"}),
        ('sweep = "é"', {"sweep": "é"}),
        ('sweep = "shift+g"', {"sweep": "G"}),
        ('sweep = "shift+ctrl+up"', {"sweep": "ctrl+shift+up"}),
        ('sweep = "alt+x"', {"sweep": "alt+x"}),
        ('sweep = "ctrl+/"', {"sweep": "ctrl+slash"}),
        ('sweep = "full_stop"', {"sweep": "full_stop"}),
        ('sweep = "slash"\nfilter = "f3"', {"sweep": "slash", "filter": "f3"}),
        ('sweep = ""', {"sweep": UNBOUND}),
        ("sweep = []\norder = []", {"sweep": UNBOUND, "order": UNBOUND}),
        ('sweep = "o"\norder = "s"', {"sweep": "o", "order": "s"}),
        ('sweep = "o"\norder = []', {"sweep": "o", "order": UNBOUND}),
        ('"hold.4" = "f4"', {"hold.4": "f4"}),
        ('hold.4 = "f4"', {"hold.4": "f4"}),
        ('suspend = "f6"', {"suspend": "f6"}),
        ('interrupt = ["ctrl+c", "f10"]', {"interrupt": "ctrl+c,f10"}),
        ("quit = []", {"quit": UNBOUND}),
        ("", {}),
    ],
)
def test_keys_are_read_as_textual_names_them(path: Path, text: str, found: dict[str, str]) -> None:
    assert read(path, text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('swep = "f5"', "`swep` is not an action: did you mean `sweep`?"),
        ('xyzzy = "f5"', "`xyzzy` is not an action, expected one of up, sweep"),
        ("sweep = 5", "`sweep` is 5, expected a key"),
        ("sweep = [5]", "`sweep` is [5], expected a key"),
        ('sweep = "pgup"', "`sweep`: 'pgup' is not a key: did you mean 'pageup'?"),
        ('sweep = "f55"', "'f55' is not a key: did you mean 'f5"),
        ('sweep = "cntrl+x"', "'cntrl+x' is not a key"),
        ('sweep = "ctrl+"', "'ctrl+' is not a key"),
        ('sweep = "s,x"', '\'s,x\' is not a key: for several, write a list: ["s", "x"]'),
        ('sweep = "ctrl+X"', "write 'ctrl+x'"),
        ('sweep = "shift+1"', "write the character that shift+1 types"),
        ('sweep = "ctrl+i"', "'ctrl+i' is the same key as 'tab'"),
        ('sweep = "ctrl+["', "'ctrl+[' is the same key as 'escape'"),
        ('sweep = "<ignore>"', "'<ignore>' is not a key"),
        ('sweep = ["x", "x"]', "`sweep` has 'x' twice"),
        ('sweep = ["x", ""]', "'' is not a key"),
        ('sweep = "x"\norder = "x"', "`order` and `sweep` both have 'x', expected another key"),
        ('sweep = "o"', "both have 'o', which `order` has by default: give `order` another key"),
        ('sweep = "k"', "or none with up = []"),
        ('sweep = "4"', 'or none with "hold.4" = []'),
        ('sweep = "/"', "`sweep` and `filter` both have 'slash'"),
        ('sweep = "ctrl+c"', "`sweep`: 'ctrl+c' always quits"),
        ('interrupt = "f10"', "`interrupt` must keep 'ctrl+c'"),
        ("interrupt = []", "`interrupt` must keep 'ctrl+c'"),
        ("help = []\nquit = []", "`help` and `quit` have no key"),
    ],
)
def test_errors_name_file_and_action(path: Path, text: str, said: str) -> None:
    with pytest.raises(KeymapError) as caught:
        read(path, text)
    assert str(caught.value).startswith(f"{path}: [keys] `")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[keys", "not valid TOML"),
        ('keys = "s"', "`keys` is not a table: write [keys]"),
        ("[kyes]\nsweep = 's'", "`kyes` is not known, expected the tables [keys]"),
    ],
)
def test_a_file_of_another_form_is_told(path: Path, text: str, said: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KeymapError) as caught:
        read_keymap(path, ACTIONS)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_folder_in_its_place_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(KeymapError, match="cannot be read"):
        read_keymap(path, ACTIONS)


def test_the_file_is_looked_for_in_the_config_folder(own_folders: Path) -> None:
    assert keymap_path() == own_folders / "config" / "qtui" / "keymap.toml"


@given(st.text(min_size=1, max_size=12) | st.text("ctrl+shifal", min_size=1, max_size=12))
def test_any_text_is_a_key_or_an_error_that_quotes_it(written: str) -> None:
    said = ""
    try:
        name = key_name(written)
    except ValueError as error:
        said = str(error)
    if said:
        assert repr(written) in said
    else:
        assert "," not in name
        assert not written.isascii() or key_name(name) == name, "a name stands for itself"


def typed(sequence: str) -> list[str]:
    """Keys that Textual makes of what a terminal sends."""
    return [e.key for e in XTermParser().feed(sequence) if isinstance(e, events.Key)]


@pytest.mark.parametrize("character", list(map(chr, range(33, 127))))
def test_a_character_names_the_key_that_typing_it_presses(character: str) -> None:
    assert typed(character) == [key_name(character)]


def test_names_of_keys_are_those_that_terminals_send() -> None:
    sent = {
        key.value
        for keys in ANSI_SEQUENCES_KEYS.values()
        if isinstance(keys, tuple)
        for key in keys
    }
    assert NAMES - sent <= {f"f{n}" for n in range(13, 25)} | {"space"}
    assert UNBOUND not in sent


# --- the template ---------------------------------------------------------------------------------


def test_the_template_changes_nothing_until_a_line_is_taken_in(path: Path) -> None:
    path.write_text(keymap_template(ACTIONS), encoding="utf-8")
    assert read_keymap(path, ACTIONS) == Keymap()


def test_every_line_of_the_template_says_what_holds_by_default(path: Path) -> None:
    _, body = keymap_template(ACTIONS).split("[keys]\n")
    lines = [line.removeprefix("# ") for line in body.splitlines()]
    assert len(lines) == len(ACTIONS)
    text = "\n".join(lines)
    assert read(path, text) == {id: keys or UNBOUND for id, keys in ACTIONS.items()}
    assert tomli.loads(text)["help"] == "?"


# --- with Textual ---------------------------------------------------------------------------------


class Pressed(App[None]):
    """Keeps the actions that were run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "did('sweep')", id="sweep"),
        Binding("o", "did('order')", id="order"),
        Binding("q", "did('quit')", id="quit", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []
        self._bindings.key_to_bindings["4"] = [Binding("4", "did('hold.4')", id="hold.4")]

    def action_did(self, action: str) -> None:
        self.did.append(action)


@pytest.mark.parametrize(
    ("text", "keys", "did"),
    [
        ('sweep = ["f5", "?"]\nhelp = []', ["f5", "question_mark", "s"], ["sweep", "sweep"]),
        ('sweep = "o"\norder = "s"', ["o", "s"], ["sweep", "order"]),
        ("sweep = []\norder = []", ["s", "o", "q"], ["quit"]),
        ('"hold.4" = "f4"', ["4", "f4"], ["hold.4"]),
        ('quit = "f10"', ["q", "f10"], ["quit"]),
        ('sweep = "o"\norder = []', ["s", "o"], ["sweep"]),
    ],
)
async def test_keys_do_what_the_file_says(
    path: Path, text: str, keys: list[str], did: list[str]
) -> None:
    """Bindings made while the app runs follow too."""
    app = Pressed()
    app.set_keymap(read(path, text))
    async with app.run_test() as pilot:
        await pilot.press(*keys)
        assert app.did == did


async def test_no_sequence_of_a_terminal_runs_what_has_no_key(path: Path) -> None:
    app = Pressed()
    app.set_keymap(read(path, "sweep = []"))
    async with app.run_test() as pilot:
        ignored: Any = next(
            sequence
            for sequence, keys in ANSI_SEQUENCES_KEYS.items()
            if not isinstance(keys, str | tuple)
        )
        for event in XTermParser().feed(ignored):
            if isinstance(event, events.Key):
                app.post_message(event)
        await pilot.pause()
        assert app.did == []


# --- commands of one's own ------------------------------------------------------------------------


def commands(tmp_path: Path, text: str) -> Keymap:
    path = tmp_path / "keymap.toml"
    path.write_text(text)
    return read_keymap(path, ACTIONS)


def test_a_command_has_a_key_and_its_placeholders_become_quoted_variables(tmp_path: Path) -> None:
    found = commands(
        tmp_path, '[commands.copy]\nkey = "f7"\nrun = "scp {recipe} box:{layer} ${HOME} {other}"'
    )
    (command,) = found.commands
    assert found.keys == {"run.copy": "f7"}
    assert command.needs == {"recipe", "layer"}
    assert command.script == 'scp "$QTUI_RECIPE" box:"$QTUI_LAYER" ${HOME} {other}'


def test_a_name_from_a_checkpoint_is_never_parsed_by_the_shell(tmp_path: Path) -> None:
    (command,) = commands(tmp_path, "[commands.say]\nrun = 'printf %s {layer}'").commands
    layer = "a'; touch gone; echo \"$(touch gone)` *"
    done = subprocess.run(
        ["/bin/sh", "-c", command.script], env={"QTUI_LAYER": layer, "PATH": os.environ["PATH"]},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == layer
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[commands.x]\nkey = 'f7'", "`run` is missing"),
        ("[commands.x]\nrun = 'a'\nkeys = 'f7'", "`keys` is not known"),
        ("[commands.x]\nrun = 'a'\nkey = 'f77'", "did you mean"),
        ("[commands]\nx = 'ls'", "expected a table"),
        ("[commands.'a b']\nrun = 'ls'", "letters, digits"),
        ("[commands.x]\nrun = \"echo '{layer}'\"", "inside quotes"),
        ("[commands.x]\nrun = 'echo \"{layer}\"'", "inside quotes"),
        ("[commands.x]\nrun = 'ls'\nkey = 'ctrl+c'", "always quits"),
        ("[commands.x]\nrun = 'ls'\nkey = 'u'", "both have 'u'"),
    ],
)
def test_a_command_that_cannot_be_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KeymapError, match=said) as error:
        commands(tmp_path, text)
    assert "keymap.toml" in str(error.value)
