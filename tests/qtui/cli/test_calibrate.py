"""`qtui calibrate` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--samples", "8,none"), "--samples is '8,none', expected numbers of at least 1"),
        (("--seq-len", "1"), "--seq-len is '1', expected numbers of at least 2"),
        (("--sets", "code,,prose"), "expected sets separated by commas"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_opened(
    run: Run, given: tuple[str, ...], said: str
) -> None:
    code, out, err = run("calibrate", "demo", *given)
    assert (code, out) == (2, "")
    assert said in err


def test_the_document_has_sets_by_texts_and_the_table_their_names(
    run: Run, tmp_path: Path, prose: Path
) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    code, out, err = run(
        "calibrate", str(source), "--sets", "eval,random", "--method", "int2-g32+gptq",
        "--samples", "2", "--seq-len", "32", "--tokens", "64", "--text", str(prose),
        "--no-halves", "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "qtui.calibrate/1"
    assert [each["name"] for each in found["sets"]] == [f"eval:{prose}", "random"]
    assert found["protocol"]["seq_len"] == 32
    for each in found["sets"]:
        assert each["kl"] > 0
        assert [judged["text"] for judged in each["texts"]] == [str(prose)]
