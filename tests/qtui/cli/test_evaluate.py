"""`qtui eval` on several texts and by position, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests import tiny

Run = Callable[..., tuple[int, str, str]]


def test_each_text_has_a_column_and_positions_a_table(
    run: Run, tmp_path: Path, prose: Path
) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    other = tmp_path / "other.txt"
    other.write_text(prose.read_text(encoding="utf-8").upper(), encoding="utf-8")
    given = (
        "eval", str(source), "--format", "int4-g32", "--tokens", "128", "--seq-len", "32",
        "--text", str(prose), "--text", str(other), "--by-position",
    )  # fmt: skip
    code, out, err = run(*given)
    assert code == 0, err
    assert "by position in the windows of" in out
    columns = next(line for line in out.splitlines() if line.startswith("KL·10³"))
    assert columns.count("±") == 2
    code, out, err = run(*given, "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "qtui.eval/1"
    assert found["resumed"] == 4
    assert [each["name"] for each in found["texts"]] == [str(prose), str(other)]
    assert found["texts"][0]["kl"] == found["recipe"]["kl"]
    assert [each["last"] for each in found["texts"][0]["positions"]] == [15, 31]
    code, out, err = run(*given[:-5])
    assert (code, "tokens before" in out) == (0, False), err
