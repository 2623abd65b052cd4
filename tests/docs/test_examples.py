"""The Python examples of the README and of pages in ``docs/`` run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.library.model import Model, open_model
from tests.docs.reference import DOCS

PAGES = (DOCS / "library.md", DOCS / "jobs.md", DOCS.parent / "README.md")
FEW = 128
PROFILE = f"[standard]\ntokens = {FEW}\nseq_len = 64\n"


def on_few_tokens(source: str, **given: Any) -> Model:
    """Open it as the example says, but for how many tokens are read."""
    return open_model(source, **({**given, "tokens": FEW} if "tokens" in given else given))


@pytest.mark.usefixtures("checked_here")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    assert blocks
    config = own_folders / "config" / "qtui"
    config.mkdir(parents=True)
    (config / "profiles.toml").write_text(PROFILE)  # fewer tokens, for examples that name none
    monkeypatch.setattr(engine, "open", on_few_tokens)
    monkeypatch.chdir(own_folders)
    names: dict[str, object] = {}
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, example {number + 1}", "exec"), names)
    finally:
        for name in {"model"} & names.keys():
            names[name].close()  # type: ignore[attr-defined]
