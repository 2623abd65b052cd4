"""Patterns of others: as ``re`` reads them, and never for longer than they may take."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CheckpointError, UsageError
from engine.patterns import SECONDS, Pattern, pattern_of

NAMES = (
    "lm_head",
    "model.layers.0.mlp.up_proj",
    "model.layers.17.self_attn.q_proj",
    "model.layers.3.mlp.experts.12.down_proj",
)


@pytest.mark.parametrize(
    "text",
    [
        r".*\.mlp\..*", r"model\.layers\.(0|17)\.", r"(?!.*down).*proj$", r".*experts\.\d+\.", "",
        r"lm_head", r"(?i).*UP_PROJ", r"model\.layers\.([0-9]|1[0-7])\.\w+\.[qkv]_proj", r"[^m]",
    ],
)  # fmt: skip
def test_a_pattern_matches_what_re_matches(text: str) -> None:
    ours, theirs = Pattern(text), re.compile(text)
    for name in NAMES:
        assert ours.match(name) == bool(theirs.match(name))
        assert ours.search(name) == bool(theirs.search(name))
        assert ours.fullmatch(name) == bool(theirs.fullmatch(name))


PIECES = st.sampled_from(["a", "b", ".", "*", "+", "?", "(", ")", "|", "[ab]", r"\d", "$", "^"])


@given(st.lists(PIECES, max_size=6).map("".join), st.text("ab1.", max_size=6))
def test_any_small_pattern_is_read_as_re_reads_it_or_refused(text: str, name: str) -> None:
    try:
        ours = Pattern(text)
    except UsageError:
        return
    try:
        theirs = re.compile(text)
    except re.error:
        return
    assert ours.match(name) == bool(theirs.match(name)), text


SLOW = r"(?:\w|\w\w)+[^\w.]"
"""Every way to cut a word into ones and twos is tried, and none ends well."""


def test_a_pattern_that_backtracks_for_ever_ends_after_its_time_and_is_named() -> None:
    pattern = Pattern(SLOW, "config.json: ignore", CheckpointError)
    begun = time.thread_time()
    with pytest.raises(CheckpointError) as caught:
        pattern.match("a" * 200 + ".")
    assert time.thread_time() - begun < 2 * SECONDS
    assert "config.json: ignore" in str(caught.value)
    assert "takes too long" in str(caught.value)
    with pytest.raises(CheckpointError):
        pattern.match("b")


def test_the_time_is_that_of_all_names_together() -> None:
    pattern, names = Pattern(SLOW, seconds=0.05), [f"{'a' * 22}." for _ in range(1000)]
    with pytest.raises(UsageError, match="takes too long"):
        [pattern.match(name) for name in names]


def test_a_pattern_that_is_slow_on_every_name_of_a_large_model_is_named() -> None:
    pattern, names = Pattern(SLOW), [f"{'a' * 14}{number}." for number in range(20_000)]
    begun = time.thread_time()
    with pytest.raises(UsageError, match="takes too long"):
        [pattern.match(name) for name in names]
    assert time.thread_time() - begun < 4 * SECONDS


def test_real_patterns_may_be_tried_on_every_name_of_a_large_model() -> None:
    pattern = Pattern(r"(?!.*(shared|gate)).*layers\.(\d|[1-5]\d)\..*experts\.\d+\.(up|down)_proj")
    names = [f"model.layers.{n % 60}.mlp.experts.{n}.down_proj" for n in range(20_000)]
    assert all(pattern.match(name) for name in names)


@pytest.mark.parametrize(
    "text", ["((", "(?:(?:a{1000}){1000}){1000}", "x" * 20_000, "(" * 3000 + ")" * 3000, "*"]
)
def test_what_is_no_pattern_or_would_be_a_huge_one_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Pattern(text)


@pytest.mark.parametrize("text", ["{" + " " * 9990, "{ " * 4900, "{1," * 3000, "{" * 9990])
def test_braces_are_counted_in_no_time(text: str) -> None:
    begun = time.thread_time()
    with suppress(UsageError):
        Pattern(text)
    assert time.thread_time() - begun < 1


def test_a_name_is_a_pattern_only_behind_its_prefix() -> None:
    assert pattern_of("lm_head") is None
    found = pattern_of("re:lm_.*")
    assert found is not None
    assert found.match("lm_head")
