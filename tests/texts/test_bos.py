"""Windows that begin with BOS: what is cut, what is scored, and what is said without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import protocol as p
from engine.client import in_process
from engine.errors import UsageError
from engine.measure.calibration.text import cut_calibration
from engine.store import keys
from engine.texts.bos import adds_bos, bos_token, probe, warning
from engine.texts.text import Text
from engine.texts.windows import cut
from tests import tiny
from tests.drive import ended, facts, settings, until

BOS = 256
SEQ = 32


def with_bos() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize("stride", [None, 7])
def test_windows_begin_with_bos_and_lose_no_token(stride: int | None) -> None:
    ids = torch.arange(100)
    windows = cut(ids, 17, 1000, stride, BOS)
    step = stride or 16
    right = [[BOS, *range(at, at + 16)] for at in range(0, 100 - 16 + 1, step)]
    assert windows.ids.tolist() == right
    assert windows.targets == (stride or 16)


def test_calibration_windows_begin_with_bos() -> None:
    text = Text("counting", "".join(f"{i:05d}\n" for i in range(400)))
    plain = cut_calibration(with_bos(), text, SEQ, 128, 0)
    windows = cut_calibration(with_bos(), text, SEQ, 128, 0, BOS)
    assert windows.ids.shape == plain.ids.shape
    assert (windows.ids[:, 0] == BOS).all()
    assert torch.equal(windows.ids[0, 1:], plain.ids[0, :-1])
    assert windows.sha256 != plain.sha256


def test_a_run_with_bos_scores_what_plain_transformers_scores(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "tiny-llama")
    with_bos().save_pretrained(source)
    found, keys_found = [], []
    for bos in (False, True):
        client = in_process(str(source))
        client.send(p.Open(str(source), settings(prose, bos=bos)))
        client.send(p.Evaluate("int8"))
        events = until(client, ended("evaluate"))
        protocol = client.session.model
        client.close()
        assert protocol is not None
        assert (protocol.protocol.bos is True) == bos
        keys_found.append(keys.evaluation(keys.Files("f"), protocol.protocol, "w").protocol)
        (baseline,) = facts(events, p.Baseline)
        found.append(baseline.nll)
    assert "bos" not in keys_found[0]
    assert keys_found[1] == {**keys_found[0], "bos": True}
    model = AutoModelForCausalLM.from_pretrained(source)
    ids = AutoTokenizer.from_pretrained(source)(prose.read_text(), add_special_tokens=False)[
        "input_ids"
    ]
    for own, begin, nll in ((SEQ, [], found[0]), (SEQ - 1, [BOS], found[1])):
        rows = [begin + ids[i * own : (i + 1) * own] for i in range(512 // SEQ)]
        windows = torch.tensor(rows)
        with torch.no_grad():
            logits = model(windows).logits[:, :-1]
        right = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        assert nll == pytest.approx(float(right), abs=1e-5)


def test_a_tokenizer_without_bos_cannot_begin_windows_with_it() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(UsageError, match="--bos"):
        bos_token(tokenizer)
    assert bos_token(with_bos()) == BOS
    assert not adds_bos(with_bos())


def test_only_a_model_that_needs_bos_is_warned_of() -> None:
    assert "--bos" in warning(8.0, 3.0)
    assert "8.00 nats per token without, 3.00 with it" in warning(8.0, 3.0)
    for without, with_ in ((3.2, 3.0), (3.0, 8.0), (float("nan"), 3.0)):
        assert not warning(without, with_)
    assert list(probe(range(1000))) == list(range(500, 564))
    assert not probe(range(100))
