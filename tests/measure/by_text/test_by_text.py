"""A recipe on several texts and by position, against NumPy on whole forwards of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.measure.by_text import by_text
from engine.measure.by_text.positions import PositionSums, buckets, by_position
from engine.measure.evaluation.divergence import Positions
from engine.report.documents import eval_document
from engine.report.tables import eval_markdown, eval_text
from engine.report.wording import perplexity
from engine.session import Session, apply
from tests import tiny
from tests.drive import ended, settings, until


def test_buckets_of_context_double_and_leave_no_gap() -> None:
    assert buckets(1, 255) == [(1, 15), (16, 31), (32, 63), (64, 127), (128, 255)]
    assert buckets(1, 31) == [(1, 15), (16, 31)]
    assert buckets(1, 1) == [(1, 1)]
    assert buckets(64, 100) == [(64, 100)]
    assert buckets(40, 200) == [(40, 63), (64, 127), (128, 200)]
    for least, most in ((1, 5), (3, 1000), (17, 17), (16, 64), (512, 1023)):
        found = buckets(least, most)
        together = [each for low, high in found for each in range(low, high + 1)]
        assert together == list(range(least, most + 1))


def test_tiles_in_any_order_are_added_where_they_belong() -> None:
    nll = torch.rand(4, 39, generator=torch.Generator().manual_seed(1))
    dnll, kl = nll.square(), nll.sqrt()
    ranges = buckets(11, 49)  # positions 10 to 48 count
    sums = PositionSums(4, ranges)
    for rows, at in ((slice(2, 4), slice(20, 39)), (slice(0, 2), slice(0, 39)),
                     (slice(2, 4), slice(0, 20))):  # fmt: skip
        parts = [each[rows, at] for each in (nll, dnll, kl)]
        same = torch.ones_like(parts[0], dtype=torch.bool)
        sums.take(Positions(*parts, same, row=rows.start, first=10 + at.start))
    context = np.arange(11, 50)
    for found, values in zip(sums.sums.numpy(), (nll, dnll, kl), strict=True):
        for bucket, (low, high) in enumerate(ranges):
            of = (context >= low) & (context <= high)
            np.testing.assert_allclose(found[:, bucket], values.double().numpy()[:, of].sum(1))
    one = by_position([sums.sums], ranges)[1]
    assert one.ppl_reference == pytest.approx(np.exp(nll.double().numpy()[:, 5:21].mean()))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("by_text") / "llama")


def asked(source: Path, text: Path, *commands: p.MeasureTexts) -> tuple[Session, list[p.JobEnded]]:
    session, ends = Session(), []
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(text, tokens=192, seq_len=48)))
        for each in commands:
            client.send(each)
            stop = ended("texts")
            for event in until(client, lambda e: stop(e) or isinstance(e, p.Refused)):  # noqa: B023
                apply(session, event)
                if isinstance(event, p.JobEnded) and event.kind == "texts":
                    ends.append(event)
    finally:
        client.close()
    return session, ends


def test_figures_of_each_text_and_bucket_are_numpys(
    llama: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other.txt"
    other.write_text(prose.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    held: dict[str, torch.Tensor] = {}
    windows: dict[str, torch.Tensor] = {}
    inner = by_text._measured

    def keeping(loaded: Any, text: Any, weights: Any, counts: Any) -> Any:
        held.update({name: weight.clone() for name, weight in weights.items()})
        windows[text.name] = text.reference.windows.ids
        return (yield from inner(loaded, text, weights, counts))

    monkeypatch.setattr(by_text, "_measured", keeping)
    command = p.MeasureTexts(texts=(str(prose), str(other)), format="int3-g32")
    session, (first, again) = asked(llama, prose, command, command)
    assert (first.status, again.status) == ("done", "done"), first.message
    assert (first.measured, again.measured) == (4, 0)  # the baseline, the recipe, two texts
    assert again.resumed == 4
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)

    def log_p(ids: torch.Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return model(ids).logits[:, :-1].double().log_softmax(-1).numpy()

    before = {name: log_p(ids) for name, ids in windows.items()}
    with torch.no_grad():
        for name, weight in held.items():
            model.get_submodule(name).weight.copy_(weight)
    jobs = [job for job in session.jobs.values() if job.kind == "texts"]
    texts = jobs[-1].read(p.MeasuredTexts).texts
    assert [each.name for each in texts] == [str(prose), str(other)]
    for found in texts:
        ids = windows[found.name]
        base, changed = before[found.name], log_p(ids)
        target = ids[:, 1:, None].numpy()
        nll = -np.take_along_axis(base, target, -1)[..., 0]
        nll_q = -np.take_along_axis(changed, target, -1)[..., 0]
        kl = (np.exp(base) * (base - changed)).sum(-1)
        assert found.tokens == nll.size
        assert found.ppl_reference == pytest.approx(np.exp(nll.mean()), rel=1e-5)
        assert found.ppl == pytest.approx(np.exp(nll_q.mean()), rel=1e-5)
        assert found.kl == pytest.approx(kl.mean(), rel=1e-4)
        assert [(at.first, at.last) for at in found.positions] == [(1, 15), (16, 31), (32, 47)]
        for at in found.positions:
            of = slice(at.first - 1, at.last)
            dnll = (nll_q - nll)[:, of].mean(1)
            assert at.ppl_reference == pytest.approx(np.exp(nll[:, of].mean()), rel=1e-5)
            assert at.ppl == pytest.approx(np.exp(nll_q[:, of].mean()), rel=1e-5)
            assert at.dnll == pytest.approx(dnll.mean(), rel=1e-3, abs=1e-6)
            assert at.dnll_se == pytest.approx(dnll.std(ddof=1) / len(dnll) ** 0.5, rel=1e-3)
            assert at.kl == pytest.approx(kl[:, of].mean(), rel=1e-4)
    score = session.scores[jobs[-1].recipe]
    assert texts[0].kl == pytest.approx(score.kl, rel=1e-6)  # the session's own text
    document = eval_document(session, score, "int3-g32", job=jobs[-1])
    for made in (eval_text(document, positions=True), eval_markdown(document, positions=True)):
        lines = made.splitlines()
        stored = next(line for line in lines if "PPL as stored" in line)
        for each in texts:
            assert perplexity(each.ppl_reference) in stored
        assert any("tokens before" in line and "16–31" in line for line in lines)
    assert "tokens before" not in eval_text(document)


def test_without_a_recipe_the_sessions_own_is_meant(llama: Path, prose: Path) -> None:
    from engine.errors import EngineError
    from engine.service.commands import spec_of
    from engine.service.jobs import Context

    ask = p.MeasureTexts()
    context: Context[None] = Context(None, Session())
    with pytest.raises(EngineError, match="every layer is as stored"):
        spec_of(ask).accept(context, ask)  # type: ignore[union-attr]
