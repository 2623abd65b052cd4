"""Calibration sets compared, against plain loops of transformers; facts, restarts, refusals."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.diagnosis.of_calibration import best_sets, calibration_findings
from engine.errors import TextError
from engine.measure.calibrating import comparing, gathering
from engine.report.documents import calibrate_document
from engine.report.tables import calibration_markdown, calibration_text
from engine.service.commands import spec_of
from engine.session import Session, apply
from engine.texts import corpora, named_sets
from engine.texts.hub import UNREACHABLE
from tests import tiny
from tests.drive import ended, facts, settings, until

GPTQ = "int2-g32+gptq"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("calibrating") / "llama")


def calibrated(
    source: Path, text: Path, *asked: p.Calibrate, **given: object
) -> tuple[Session, list[list[p.AnyEvent]]]:
    """What a session knows after these commands, and the events of each."""
    session, seen = Session(), []
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(text, **{"tokens": 128, **given})))
        for each in asked:
            client.send(each)
            stop = ended("calibrate")
            seen.append(until(client, lambda e: stop(e) or isinstance(e, p.Refused)))  # noqa: B023
            for event in seen[-1]:
                apply(session, event)
    finally:
        client.close()
    return session, seen


def ended_well(session: Session) -> None:
    for job in session.jobs.values():
        assert job.status == "done", job.message


def test_every_set_is_checked_before_it_is_measured_and_judged_on_every_text(
    llama: Path, prose: Path
) -> None:
    ask = p.Calibrate(
        sets=("eval", "random"), method=GPTQ, samples=(2, 4), texts=(str(prose), "prose")
    )
    session, (events,) = calibrated(llama, prose, ask)
    ended_well(session)
    found = calibrate_document(session)
    names = [f"eval:{prose}", "eval:prose", "random"]
    assert [(each.name, each.samples) for each in found.sets] == [
        (name, samples) for name in names for samples in (2, 4)
    ]
    for part in found.sets:
        assert [each.text for each in part.texts] == [str(prose), "prose"]
        assert all(isinstance(each.kl, float) and each.kl > 0 for each in part.texts)
        assert (part.tokens, part.seq_len) == (32 * part.samples, 32)
        assert part.kl == part.texts[0].kl
    first = next(e for e in facts(events, p.CalibrationCheck | p.CalibrationScore))  # type: ignore[arg-type]
    assert isinstance(first, p.CalibrationCheck)
    order = [type(fact).__name__ for fact in facts(events, p.CalibrationCheck | p.CalibrationScore)]  # type: ignore[arg-type]
    assert order[:4] == ["CalibrationCheck"] * 2 + ["CalibrationScore"] * 2
    for text in (calibration_text(found), calibration_markdown(found)):
        assert all(name in text.replace("\\", "") for name in names)
    halves = [key for key in session.calibrating.scores if key.part == "second half"]
    assert len(halves) == len(names) * 2


def test_scores_equal_a_plain_loop_with_the_weights_that_were_made(
    llama: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL of each window, from whole forwards of a copy of the model."""
    from transformers import AutoModelForCausalLM

    made: list[dict[str, torch.Tensor]] = []
    inner = comparing.quantised

    def noting(*given: object) -> object:
        held = yield from inner(*given)  # type: ignore[arg-type]
        made.append({name: weight.clone() for name, weight in held.items()})  # type: ignore[union-attr]
        return held

    windows: list[torch.Tensor] = []
    scored = comparing.scored

    def keeping(loaded: object, text: object, *given: object) -> object:
        windows.append(text.reference.windows.ids)  # type: ignore[attr-defined]
        return (yield from scored(loaded, text, *given))  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "quantised", noting)
    monkeypatch.setattr(comparing, "scored", keeping)
    ask = p.Calibrate(sets=("random",), method=GPTQ, samples=(3,), halves=False)
    session, _ = calibrated(llama, prose, ask)
    ended_well(session)
    (score,) = session.calibrating.scores.values()
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        before = model(windows[0]).logits[:, :-1].log_softmax(-1)
        for name, weight in made[0].items():
            model.get_submodule(name).weight.copy_(weight)
        after = model(windows[0]).logits[:, :-1].log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean(-1)
    torch.testing.assert_close(torch.tensor(score.kls), kl, rtol=1e-4, atol=1e-6)
    assert score.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    targets = windows[0][:, 1:, None]
    nll = -after.gather(-1, targets).mean()
    assert score.nll == pytest.approx(float(nll), rel=1e-5)


def test_what_was_measured_is_known_and_more_samples_run_over_the_new_ones_alone(
    llama: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    inner = comparing.run_over

    def counting(network: object, batches: list[torch.Tensor], *given: object) -> object:
        ran.append(sum(len(ids) for ids in batches))
        return inner(network, batches, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "run_over", counting)
    monkeypatch.setattr(gathering, "run_over", counting)
    small = p.Calibrate(sets=("random",), method=GPTQ, samples=(2, 4), halves=False)
    more = p.Calibrate(sets=("random",), method=GPTQ, samples=(2, 4, 7), halves=False)
    session, seen = calibrated(llama, prose, small, small, more, batch_tokens=64)
    ended_well(session)
    # Two and two more, both halves of the evaluation text between; then two, and one of a part that
    # is cut, and those halves again.
    assert ran == [2, 2, 2, 2, 2, 1, 2, 2]
    ends = [events[-1] for events in seen]
    assert [(each.measured, each.resumed) for each in ends if isinstance(each, p.JobEnded)] == [
        (4, 0),
        (0, 4),
        (2, 4),
    ]
    _, (again,) = calibrated(llama, prose, more, batch_tokens=64)
    end = again[-1]
    assert isinstance(end, p.JobEnded)
    assert (end.measured, end.resumed) == (0, 6)


def test_what_halves_tell_is_there_after_a_restart(llama: Path, prose: Path) -> None:
    """The first half of four windows was measured as all of two."""
    ask = p.Calibrate(sets=("random",), method="int2-g32-sym+gptq", samples=(2, 4))
    session, _ = calibrated(llama, prose, ask)
    assert len([key for key in session.calibrating.scores if key.part]) == 2
    client = in_process(str(llama))
    with closing(client):
        assert client.session.calibrating == session.calibrating


def test_figures_are_the_same_to_the_last_digit_whichever_numbers_were_asked_for(
    llama: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was ended, too; parts are of two windows, so that odd numbers cut one."""
    whole = p.Calibrate(sets=("random",), method=GPTQ, samples=(3, 4, 7))
    other = p.Calibrate(sets=("random",), method=GPTQ, samples=(4,), halves=False)
    session, (events,) = calibrated(llama, prose, whole, batch_tokens=64)
    course = [event for event in events if isinstance(event, p.Progress)]
    assert {event.total for event in course} == {5}  # three numbers, two halves
    done = [event.done for event in course]
    assert done == sorted(done)
    assert done[-1] >= 4
    assert any(event.subject == "random 7 × 32, second half measuring" for event in course)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    calibrated(llama, prose, other, batch_tokens=64)
    resumed, (events,) = calibrated(llama, prose, whole, batch_tokens=64)
    assert isinstance(events[-1], p.JobEnded)
    assert events[-1].resumed > 0
    assert set(session.calibrating.scores) == set(resumed.calibrating.scores)
    for key, score in session.calibrating.scores.items():
        assert resumed.calibrating.scores[key] == score, key
    assert resumed.calibrating.checks == session.calibrating.checks


def test_a_budget_that_does_not_hold_the_statistics_refuses_them(llama: Path, prose: Path) -> None:
    ask = p.Calibrate(sets=("random",), method=GPTQ, samples=(2,))
    size = sum(file.stat().st_size for file in llama.glob("*.safetensors"))
    session, _ = calibrated(llama, prose, ask, memory_budget=round(size * 1.2))
    (message,) = [job.message for job in session.jobs.values() if job.kind == "calibrate"]
    assert "and the budget leaves" in message
    assert "give a larger --memory-budget" in message


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("wikitext2", "the set wikitext2: the dataset Salesforce/wikitext is not in the local"),
        ("owner/notes", "the dataset owner/notes is not in the local cache, and the hub cannot"),
    ],
)
def test_a_set_that_cannot_be_had_offline_is_said_before_anything_is_measured(
    llama: Path, prose: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str
) -> None:
    def load(path: str, *_given: object, **_named: object) -> object:
        raise TextError(f"the dataset {path} {UNREACHABLE}")

    monkeypatch.setattr(named_sets, "load_split", load)
    monkeypatch.setattr(corpora, "load_split", load)
    ask = p.Calibrate(sets=("random", "own", named), method=GPTQ, samples=(2,))
    session, (events,) = calibrated(llama, prose, ask)
    (message,) = [job.message for job in session.jobs.values() if job.kind == "calibrate"]
    assert said in message
    assert not facts(events, p.CalibrationCheck | p.CalibrationScore)  # type: ignore[arg-type]
    assert not [event for event in events if isinstance(event, p.Progress)]


def test_checks_alone_quantise_nothing(llama: Path, prose: Path) -> None:
    ask = p.Calibrate(sets=("random", "own"), method=GPTQ, samples=(2,), measure=False)
    session, _ = calibrated(llama, prose, ask)
    ended_well(session)
    assert not session.calibrating.scores
    found = {key.set: key for key in session.calibrating.checks}
    assert set(found) == {"random", "own"}
    ids = {each.id for each in calibration_findings(session, found["random"])}
    assert {"few-samples", "few-tokens"} <= ids
    assert not best_sets(session, GPTQ, str(prose))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (p.Calibrate(sets=()), "name a calibration set: c4, wikitext2"),
        (p.Calibrate(sets=("wikitxt",)), "no calibration set 'wikitxt': known are c4"),
        (p.Calibrate(sets=("./none.txt",)), "no such file or folder"),
        (p.Calibrate(sets=("random",), method="int4-g32"), "int4-g32 uses no calibration text"),
        (p.Calibrate(sets=("random",), method="bf16"), "such as int4-g128.gptq"),
        (p.Calibrate(sets=("random",), samples=(0,)), "--samples is 0, expected at least 1"),
        (p.Calibrate(sets=("random",), seq_lens=(1,)), "--seq-len is 1, expected at least 2"),
    ],
)
def test_what_cannot_be_is_refused_at_once(asked: p.Calibrate, said: str) -> None:
    from engine.errors import EngineError
    from engine.service.jobs import Context

    context: Context[None] = Context(None, Session())
    with pytest.raises(EngineError, match=said):
        spec_of(asked).accept(context, asked)  # type: ignore[union-attr]


def test_experts_that_no_token_reached_are_told(tmp_path: Path, prose: Path) -> None:
    folder = tiny.build("qwen3_moe", tmp_path / "moe")
    ask = p.Calibrate(sets=("random",), method="int3-g32+gptq", samples=(1,), seq_lens=(2,))
    session, _ = calibrated(folder, prose, ask)
    ended_well(session)
    (check,) = session.calibrating.checks.values()
    assert check.experts > check.unseen > 0
    assert "unseen-experts" in {e.id for e in calibration_findings(session, check.key)}
