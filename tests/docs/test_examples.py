"""The Python examples of the README and of pages in ``docs/`` run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.reference import DOCS

PAGES = (DOCS / "library.md", DOCS / "jobs.md", DOCS.parent / "README.md")
PROFILE = "[standard]\ntokens = 512\nseq_len = 64\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    assert blocks
    config = own_folders / "config" / "qtui"
    config.mkdir(parents=True)
    (config / "profiles.toml").write_text(PROFILE)  # fewer tokens, for examples that name none
    monkeypatch.chdir(own_folders)
    names: dict[str, object] = {}
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, example {number + 1}", "exec"), names)
    finally:
        for name in {"model"} & names.keys():
            names[name].close()  # type: ignore[attr-defined]
