"""``qtui symptoms``: its document, its text, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.build("llama", tmp_path_factory.mktemp("symptoms") / "llama"))


def asked(prose: Path, *further: str) -> list[str]:
    given = ["--text", str(prose), "--tokens", "256", "--seq-len", "32", "--new-tokens", "8"]
    return [*given, *further]


def test_the_document_has_both_texts_and_what_both_would_have_said(
    source: str, prose: Path, tmp_path: Path, run: Run
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the quick brown fox\na lazy dog\n")
    given = asked(prose, "--format", "int2-g32", "--prompts", str(prompts), "--prompt", "while")
    code, out, err = run("symptoms", source, *given, "--json", "-")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "qtui.symptoms/1"
    assert document["recipe"] == "int2-g32"
    assert document["sampling"]["new_tokens"] == 8
    found = document["prompts"]
    assert [each["id"] for each in found] == ["1", "2", "typed 1"]
    differing = [each for each in found if each["first_difference"] is not None]
    assert differing
    for each in differing:
        apart = each["difference"]
        assert apart["token"] == each["first_difference"]
        for side in ("reference", "recipe"):
            assert apart[f"{side}_top"][0]["token"] == apart[side]  # greedy
        assert each["kl"] > 0
    assert document["alarms"] == sum(bool(each["findings"]) for each in found)


def test_text_of_a_model_is_escaped(source: str, prose: Path, run: Run) -> None:
    given = asked(prose, "--format", "int2-g32", "--prompt", "\x1b[31mred", "--temperature", "1")
    code, out, err = run("symptoms", source, *given, "--divergence")
    assert code == 0, err
    assert "recipe int2-g32; 1 prompt, 8 new tokens, temperature 1" in out
    assert "window 32;" in out  # what the tables of divergence are about
    assert "\\x1b[31mred" in out
    assert "\x1b" not in out
    code, out, err = run("symptoms", source, *given, "--markdown")
    assert code == 0, err
    assert "\x1b" not in out
    assert out.startswith("# llama: symptoms\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompt", "x"], "--format F or --recipe"),
        (["--format", "int4"], "--prompts FILE, --prompt TEXT, --tasks FILE or --divergence"),
        (["--format", "int4", "--prompt", " "], "there is no prompt"),
        (
            ["--format", "int4", "--prompt", "x", "--temperature", "11"],
            "expected 0, or 0.001 to 10",
        ),
        (["--format", "int4", "--prompt", "x\udcff"], "--prompt is not UTF-8"),
        (["--format", "int4", "--prompt", "x", "--temperature", "1e-30"], "expected 0, or 0.001"),
        (["--format", "int4", "--prompt", "x", "--top-p", "0"], "expected above 0"),
        (["--format", "int4", "--prompt", "x", "--new-tokens", "4000"], "it is too long"),
    ],
)
def test_what_cannot_be_done_is_refused(
    source: str, prose: Path, run: Run, given: list[str], said: str
) -> None:
    code, out, err = run("symptoms", source, "--text", str(prose), "--tokens", "64",
                         "--seq-len", "32", *given)  # fmt: skip
    assert code == 2
    assert out == ""
    assert said in err


def test_a_file_that_cannot_be_read_is_named(source: str, prose: Path, run: Run) -> None:
    given = asked(prose, "--format", "int4-g32", "--prompts", "absent.jsonl")
    code, _, err = run("symptoms", source, *given)
    assert code == 3
    assert "absent.jsonl: cannot be read" in err


def test_tasks_are_answered_by_both_and_flips_counted(
    source: str, prose: Path, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "letters.jsonl"
    lines = [
        {"prompt": f"after {a} comes", "choices": ["b", "c", "d", "e"], "answer": at % 4}
        for at, a in enumerate("abcdefgh")
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    given = ["--text", str(prose), "--tokens", "64", "--seq-len", "32", "--format", "int2-g32"]
    code, out, err = run("symptoms", source, *given, "--tasks", str(file), "--json", "-")
    assert code == 0, err
    document = json.loads(out)
    assert document["prompts"] == []
    (task,) = document["tasks"]
    assert (task["name"], task["items"], task["metric"]) == ("letters", 8, "acc")
    assert task["flips"] == task["lost"] + task["gained"]
    low, high = task["accuracy_ci95"]
    assert low <= task["accuracy"] <= high
    code, out, err = run("symptoms", source, *given, "--tasks", str(file))
    assert code == 0, err
    assert "letters" in out
    assert "acc_norm" in out
    code, _, err = run("symptoms", source, *given, "--tasks", str(tmp_path / "nothing.jsonl"))
    assert code == 3
    assert "nothing.jsonl" in err
    file.write_text('{"prompt": "x"}\n', encoding="utf-8")
    code, _, err = run("symptoms", source, *given, "--tasks", str(file))
    assert code == 3
    assert "line 1: answer is None" in err


def test_llama_cpps_tables_of_the_recipe_are_in_document_and_text(
    source: str, prose: Path, run: Run
) -> None:
    given = ["--text", str(prose), "--tokens", "64", "--seq-len", "32", "--format", "int2-g32"]
    code, out, err = run("symptoms", source, *given, "--divergence", "--json", "-")
    assert code == 0, err
    table = json.loads(out)["divergence"]
    assert table["tokens"] == 62
    assert table["kld"]["max"] >= table["kld"]["mean"] > 0
    code, out, err = run("symptoms", source, *given, "--divergence")
    assert code == 0, err
    assert "Maximum KLD" in out
