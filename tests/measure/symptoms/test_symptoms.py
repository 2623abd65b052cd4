"""Prompts continued by reference and recipe, against plain transformers on both sets of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.client import in_process
from engine.diagnosis.of_symptoms import Shown
from engine.formats.grammar import parse_format
from engine.measure.symptoms import tracing
from engine.measure.symptoms.restoring import Failing
from engine.measure.symptoms.symptoms import end_tokens
from engine.measure.symptoms.tracing import (
    failing_prompts,
    healthy_prompts,
    reference_failures,
)
from engine.model.generation import choose, uniform_numbers
from engine.quant.quantize import dequantized
from engine.session import Session, apply
from engine.texts.prompts import Prompt, Tokens
from tests import brute_force, tiny
from tests.drive import ended, settings, until

PROMPTS = ["the quick brown fox", "a", "seven boxers sleep while a lazy dog", "while seven"]
FORMAT = "int3-g32"
NEW = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("symptoms") / "llama")


@pytest.fixture(scope="module")
def both(source: Path) -> tuple[Any, Any]:
    """The model, and the model with every layer of its body rounded."""
    reference, changed = brute_force.load(source), brute_force.load(source)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
                weight.copy_(dequantized(weight.float(), parse_format(FORMAT), torch.float16))
    return reference, changed


def asked(source: Path, text: Path, **given: Any) -> Session:
    """What a session knows after prompts were continued."""
    session = Session()
    client = in_process(str(source))
    command = p.FindSymptoms(**{"prompts": tuple(PROMPTS), "format": FORMAT, **given})
    try:
        client.send(p.Open(str(source), settings(text)))
        client.send(command)
        stop = ended("symptoms")
        for event in until(client, lambda e: stop(e) or isinstance(e, p.Refused)):
            apply(session, event)
            assert not isinstance(event, p.Refused), event
    finally:
        client.close()
    return session


def only(session: Session) -> list[p.Continued]:
    """The facts of the last job, in the order of the prompts."""
    job = next(job for job in reversed(session.jobs.values()) if job.kind == "symptoms")
    assert job.status == "done", job.message
    found = job.read(p.Symptoms)
    return [session.continued[found.recipe][each] for each in found.prompts]


def plain(model: Any, prompt: list[int], pick: Callable[[int, Tensor], int]) -> list[int]:
    """A loop without a cache, a batch or padding."""
    ids = list(prompt)
    with torch.no_grad():
        for at in range(NEW):
            ids.append(pick(at, model(input_ids=torch.tensor([ids])).logits[0, -1]))
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_texts_are_those_of_a_plain_loop_over_both(
    source: Path, both: tuple[Any, Any], prose: Path, temperature: float
) -> None:
    tokenizer = tiny.tokenizer()
    facts = only(asked(source, prose, sampling=p.Sampling(NEW, temperature)))
    assert [fact.text for fact in facts] == PROMPTS
    for fact in facts:
        ids = tokenizer(fact.text)["input_ids"]
        numbers = uniform_numbers(ids, 0, NEW)

        def pick(at: int, logits: Tensor, numbers: Tensor = numbers) -> int:
            return int(choose(logits[None], numbers[at : at + 1], temperature))

        one, other = (plain(model, ids, pick) for model in both)
        assert list(fact.reference.tokens) == one
        assert list(fact.changed.tokens) == other
        assert fact.reference.text == tokenizer.decode(one, skip_special_tokens=True)
        apart = [at for at in range(NEW) if one[at] != other[at]]
        assert fact.first == (apart[0] if apart else -1)
        if apart:
            until_there = torch.tensor([ids + one[: apart[0]]])
            with torch.no_grad():
                logits = both[1](input_ids=until_there).logits[0, -1]
            best = logits.softmax(-1).topk(5)
            assert [each.p for each in fact.changed_top] == pytest.approx(
                best.values.tolist(), rel=1e-3
            )
            named = [tokenizer.decode([token]) for token in best.indices.tolist()]
            assert [each.token for each in fact.changed_top] == named
            assert fact.pieces == (
                tokenizer.decode(one[apart[0]]),
                tokenizer.decode(other[apart[0]]),
            )
    assert any(fact.first >= 0 for fact in facts)


def test_surprise_and_kl_are_those_of_whole_texts(
    source: Path, both: tuple[Any, Any], prose: Path
) -> None:
    tokenizer = tiny.tokenizer()
    for fact in only(asked(source, prose, sampling=p.Sampling(NEW))):
        ids = tokenizer(fact.text)["input_ids"]
        for said, is_recipe in ((fact.reference, False), (fact.changed, True)):
            whole = torch.tensor([ids + list(said.tokens)])
            with torch.no_grad():
                logp, other = (
                    model(input_ids=whole).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
                    for model in both
                )
            nll = -logp.gather(-1, torch.tensor(said.tokens)[:, None]).mean()
            assert said.surprise == pytest.approx(float(nll), rel=1e-4)
            if is_recipe:
                kl = (logp.exp() * (logp - other)).sum(-1).mean()
                assert fact.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-6)


def test_a_recipe_that_changes_nothing_writes_the_same(
    both: tuple[Any, Any], prose: Path, tmp_path: Path
) -> None:
    """The weights lie on the recipe's grid already."""
    both[1].save_pretrained(tmp_path / "rounded")
    tiny.tokenizer().save_pretrained(tmp_path / "rounded")
    facts = only(asked(tmp_path / "rounded", prose, sampling=p.Sampling(NEW, 1.0)))
    assert all(fact.first == -1 for fact in facts)
    assert all(fact.kl == pytest.approx(0, abs=1e-6) for fact in facts)


def test_end_tokens_are_those_that_the_model_has() -> None:
    """Configs write -1, and tokens of another vocabulary; the least one pads a batch."""
    config = SimpleNamespace(eos_token_id=[2, 10**6, -1], get_text_config=lambda: None)
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id="</s>"),
        get_input_embeddings=lambda: torch.nn.Embedding(8, 1),
    )
    network: Any = SimpleNamespace(model=model, config=config)
    assert end_tokens(network, SimpleNamespace(eos_token_id=3)) == {2, 3}


def test_what_is_known_is_not_continued_again(source: Path, prose: Path) -> None:
    first = asked(source, prose, sampling=p.Sampling(NEW))
    again = asked(source, prose, sampling=p.Sampling(NEW), prompts=(*PROMPTS[:2], "new"))
    job = next(job for job in again.jobs.values() if job.kind == "symptoms")
    assert (job.resumed, job.measured) == (2, 1)
    assert only(again)[:2] == only(first)[:2]


def test_prompts_of_a_file_keep_their_names(source: Path, prose: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"id": "x", "prompt": "a", "topic": "t"}, {"prompt": "b", "rephrases": "x"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    facts = only(asked(source, prose, file=str(file), prompts=(), sampling=p.Sampling(3)))
    assert [(each.id, each.topic, each.rephrases) for each in facts] == [
        ("x", "t", ""),
        ("2", "", "x"),
    ]
    assert all(math.isfinite(each.kl) for each in facts)


def continuation(*tokens: int) -> p.Continuation:
    return p.Continuation(text="", tokens=tokens, ended=False, surprise=1.0)


def test_a_prompt_on_which_the_reference_fails_is_neither_healthy_nor_unhealthy() -> None:
    fine, loop = continuation(*range(30)), continuation(*([4, 5] * 15))
    facts = [
        p.Continued(
            prompt=id, recipe="r", id=id, text=id, sampling=p.Sampling(), prompt_tokens=2,
            reference=reference, changed=changed, first=0, pieces=("", ""), kl=0.1,
            reference_top=(), changed_top=(),
        )
        for id, reference, changed in (
            ("both", loop, loop), ("reference", loop, fine), ("recipe", fine, loop),
            ("neither", fine, fine),
        )
    ]  # fmt: skip
    prompts = [Tokens(Prompt(id=fact.id, text=fact.text), fact.text, [1, 2]) for fact in facts]
    assert [each.shown.fact.id for each in failing_prompts(facts, prompts)] == ["recipe"]
    assert [each.shown.fact.id for each in healthy_prompts(facts, prompts)] == ["neither"]
    assert reference_failures(facts) == 2


@pytest.mark.parametrize("fails", [("recipe", "both"), ("both",)])
def test_where_the_reference_fails_everywhere_too_it_is_said_that_nothing_is_compared(
    fails: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, loop = continuation(*range(30)), continuation(*([4, 5] * 15))
    other = continuation(*range(20), *([7] * 20))
    failing = [
        Failing(Shown(fact), Tokens(Prompt(id="", text=""), "", [1, 2]))
        for reference in (fine if who == "recipe" else other for who in fails)
        for fact in [
            p.Continued(
                prompt="", recipe="r", id="", text="", sampling=p.Sampling(), prompt_tokens=2,
                reference=reference, changed=loop, first=0, pieces=("", ""), kl=0.1,
                reference_top=(), changed_top=(),
            )
        ]
    ]  # fmt: skip
    assert [each.shown.reference_fails for each in failing] == [who == "both" for who in fails]

    def nothing(*_: object) -> Generator[None, None, list[Any]]:
        yield from ()
        return []

    contrasted: list[int] = []
    monkeypatch.setattr(tracing, "Restoring", lambda *_, **__: SimpleNamespace(cures=lambda _: []))
    monkeypatch.setattr(tracing, "units_first", lambda *_: [])
    monkeypatch.setattr(tracing, "_restored", nothing)
    monkeypatch.setattr(
        tracing, "_contrasted", lambda _, alone, *__: contrasted.append(len(alone)) or ()
    )
    some: Any = SimpleNamespace(network=None, budget=lambda: 0)
    on: Any = lambda _: SimpleNamespace(recipe="r")  # noqa: E731
    steps = tracing.trace(some, failing, [], 1, {}, some, on, some)
    notices = [event for event in steps if isinstance(event, p.Notice)]
    if "recipe" in fails:
        assert (contrasted, notices) == ([1], [])
    else:
        (notice,) = notices
        assert contrasted == []
        assert "the reference fails too" in notice.message
