"""A task, a text and a table of one recipe, as jobs leave them in a session."""

from __future__ import annotations

import msgspec

from engine import protocol as p


def task(name: str, said: str = "no") -> p.TaskResult:
    """Ten items, three flips; one of those that changed is told."""
    answered = p.Answered(
        id=said, prompt=said, right="yes", reference="yes", recipe=said, reference_right=True,
        recipe_right=False,
    )  # fmt: skip
    norm = p.Agreeing("acc_norm", 6, 1, 1, 2)
    return p.TaskResult(name, (p.Agreeing("acc", 5, 2, 1, 2), norm), 3, (answered,))


def on_text(name: str) -> p.ScoreOnText:
    """With two ranges of positions."""
    apart = {"dnll": 0.1178, "dnll_se": 0.01, "kl": 0.0678, "kl_se": 0.002}
    early = p.ScoreAtPositions(first=1, last=15, ppl_reference=20.0, ppl=22.5, **apart)
    late = p.ScoreAtPositions(first=16, last=255, ppl_reference=17.0, ppl=18.25, **apart)
    return p.ScoreOnText(
        name=name, text="text", sha256="0", tokens=4000, windows=4, ppl_reference=18.0, ppl=19.5,
        ppl_low=19.1, ppl_high=19.9, top1=0.91, positions=(early, late), **apart,
    )  # fmt: skip


def table() -> p.DivergenceTable:
    """llama.cpp's figures."""
    kld = {"mean": 0.0678, "mean_se": 0.001} | dict.fromkeys(p.KLD_QUANTILES, 0.01)
    delta = {"mean": -0.02, "rms": 0.1} | dict.fromkeys(p.DELTA_P_QUANTILES, 0.001)
    return p.DivergenceTable(
        tokens=4000, ppl=19.5, ppl_se=0.2, ppl_base=18.0, ppl_base_se=0.2, correlation=0.99,
        ln_ratio=0.08, ln_ratio_se=0.01, kld=kld, delta_p=delta, same_top=0.91, same_top_se=0.01,
    )  # fmt: skip


def ended(at: int, command: p.AnyCommand, found: object) -> list[p.AnyEvent]:
    """The events of a job that returned this."""
    kind = "texts" if isinstance(command, p.MeasureTexts) else "symptoms"
    job = f"{kind}-{at}"
    return [
        p.JobStarted(job=job, kind=kind, title=kind, command=command),
        p.JobEnded(job=job, kind=kind, status="done", result=msgspec.to_builtins(found)),
    ]


def asked(task_name: str, text_name: str, said: str = "no") -> list[p.AnyEvent]:
    """Jobs of a recipe that was named, and of the session's own."""
    symptoms = p.Symptoms("0a", (), tasks=(task(task_name, said),), divergence=table())
    texts = p.MeasuredTexts("0a", (on_text(text_name),))
    own = p.MeasuredTexts("0b", (on_text(text_name),))
    return [
        *ended(0, p.FindSymptoms(format="int3-g128"), symptoms),
        *ended(1, p.MeasureTexts(format="int3-g128"), texts),
        *ended(2, p.MeasureTexts(), own),
    ]
