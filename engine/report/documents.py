"""Results of a command as the documents of `engine.report.schema`, made from a `Session`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.causes import causes
from engine.diagnosis.of_symptoms import alarms, rates, shown
from engine.diagnosis.serving import Serving
from engine.errors import EngineError
from engine.formats.grammar import needs_calibration, parse_format
from engine.report import schema as s
from engine.report.asked_parts import asked_parts
from engine.report.calibration_parts import compared_sets, set_parts
from engine.report.comparison_parts import artefact_part, compared_parts, divergence_part
from engine.report.diagnosis_parts import (
    diagnosed_layers,
    finding_parts,
    tried_layers,
    verdict_part,
)
from engine.report.entry import Template
from engine.report.error_parts import drift_parts, errors_part
from engine.report.figures import Context
from engine.report.figures.registry import json_figures
from engine.report.json import finite
from engine.report.plan_parts import plan_parts
from engine.report.report_parts import (
    judged_format,
    plan_part,
    report_layers,
    report_recipe,
    tried_parts,
)
from engine.report.sweep_parts import (
    agreement_parts,
    floor_part,
    layer_parts,
    of_fact,
    other_formats,
    unit_parts,
)
from engine.report.symptom_parts import (
    cause_part,
    contrast_part,
    formats_of,
    prompt_part,
    rate_part,
    restored_part,
    sampling_part,
)
from engine.report.task_parts import task_part
from engine.report.text_parts import text_part
from engine.report.verdicts import from_weights
from engine.session import Job, Session, Traced, last_job

ERRORS = "errors.*."
"""Path of a format's errors in a layer's entry."""
_Fallen: TypeAlias = tuple[str, str, str, str]
"""A layer, the format it does not get, why, and its format instead; empty: as stored."""


def triage_document(
    session: Session,
    job: Job | None = None,
    answers: Sequence[p.HistogramReady | p.ExpertsReady] = (),
) -> s.TriageDocument:
    """The document of a triage.

    Args:
        session: in which a triage has ended.
        job: its job; the session's last triage if not given.
        answers: replies about single layers: a histogram, experts.
    """
    job = job or _last(session, "triage")
    refused = [
        (found.layer, format, why, "")
        for found in session.layers.weights
        if found is not None
        for format, why in found.refused.items()
    ]
    return s.TriageDocument(
        model=_model(session),
        versions=session.versions,
        layers=_triage_layers(session),
        fallbacks=_fallbacks(session, refused),
        resumed=job.resumed,
        timings=_timings(job),
        histogram=next((histogram(x) for x in answers if isinstance(x, p.HistogramReady)), UNSET),
        experts=next((experts(x) for x in answers if isinstance(x, p.ExpertsReady)), UNSET),
        remarks=[note.message for note in session.notices if note.level == "warning"] or UNSET,
        verdict=(found := _verdict_of_triage(session, job)),
        outlook=_outlook(session, job) or UNSET if isinstance(found, UnsetType) else UNSET,
    )


def _verdict_of_triage(session: Session, job: Job) -> s.VerdictPart | UnsetType:
    """Of the first of its formats whose effects are known from earlier runs."""
    for format in _formats_of(session, job):
        found = verdict_part(session, format)
        if not isinstance(found, UnsetType):
            return found
    return UNSET


def _outlook(session: Session, job: Job) -> str:
    found = (from_weights(session, format) for format in _formats_of(session, job))
    return next((said for said in found if said), "")


def _formats_of(session: Session, job: Job) -> list[str]:
    """Formats that a triage was about: those that a sweep would measure first."""
    asked = job.command.formats if isinstance(job.command, p.Triage) else ()
    return list(dict.fromkeys((*session.settings.sweep_formats, *asked)))


def histogram(found: p.HistogramReady) -> s.HistogramPart:
    """A histogram, with the grid of a format if one was requested."""
    part = s.HistogramPart(
        layer=found.layer,
        low=finite(found.low),
        high=finite(found.high),
        counts=found.counts,
        mean=finite(found.mean),
        std=finite(found.std),
    )
    if not found.format:
        return part
    return msgspec.structs.replace(
        part,
        format=found.format,
        grid=[finite(value) for value in found.grid],
        step=finite(found.step),
    )


def experts(found: p.ExpertsReady) -> s.ExpertsPart:
    """Statistics of every expert of a fused layer."""
    return s.ExpertsPart(
        layer=found.layer,
        std=[finite(value) for value in found.std],
        max_abs=[finite(value) for value in found.max_abs],
        outliers=[finite(value) for value in found.outliers],
        nonfinite=found.nonfinite,
        relative={
            format: [finite(value) for value in column] for format, column in found.relative.items()
        },
    )


def sweep_document(
    session: Session,
    formats: Sequence[str],
    direction: p.Direction = "degrade",
    job: Job | None = None,
    by: p.By = "layer",
    others: bool = True,
) -> s.SweepDocument:
    """The document of a sweep, layers in the model's order.

    Args:
        session: in which a sweep has ended.
        formats: canonical, in the order requested.
        direction: whether layers were degraded or restored.
        job: its job; the session's last sweep if not given.
        by: the unit that was changed at once.
        others: whether to include formats that were only estimated.
    """
    job = job or _last(session, "sweep")
    further = other_formats(session, formats, direction) if others else ()
    return s.SweepDocument(
        direction=direction,
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        calibration=_calibration(session, "reference" if any(map(_calibrated, formats)) else ""),
        versions=session.versions,
        baseline=_baseline(session),
        control=_control(session),
        floor=floor_part(session),
        layers=layer_parts(session, formats, direction),
        estimated=layer_parts(session, further, direction) or UNSET,
        units=UNSET if by == "layer" else unit_parts(session, formats, direction, by),
        fallbacks=_fallbacks(session, _fell_back(session, formats)),
        agreement=agreement_parts(session, formats, direction),
        verdict=verdict_part(session, formats[0]) if direction == "degrade" and formats else UNSET,
        additivity=_additivity(session, formats, direction),
        timings=_timings(job),
    )


def compare_document(session: Session, job: Job | None = None) -> s.CompareDocument:
    """The document of a comparison.

    Args:
        session: in which one has ended.
        job: its job; the session's last comparison if not given.
    """
    job = job or _last(session, "compare")
    command = job.command
    assert isinstance(command, p.Compare)
    scored = command.score
    return s.CompareDocument(
        resumed=job.resumed,
        reference=UNSET if command.alone else _model(session),
        protocol=_protocol(session) if scored else UNSET,
        versions=session.versions,
        baseline=_baseline(session) if scored else UNSET,
        logits=command.logits or UNSET,
        artefacts=[
            artefact_part(session, session.compared[each])
            for each in job.read(p.Comparison).artefacts
        ],
        timings=_timings(job),
    )


def calibrate_document(session: Session, job: Job | None = None) -> s.CalibrateDocument:
    """The document of a comparison of calibration sets.

    Args:
        session: in which one has ended.
        job: its job; the session's last one if not given.
    """
    job = job or _last(session, "calibrate")
    found = job.read(p.CalibrationSets)
    wanted = {(each, length) for each in found.samples for length in found.seq_lens}
    return s.CalibrateDocument(
        method=found.method,
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        versions=session.versions,
        texts=[
            s.CalibratedTextPart(name=name, text=text, text_sha256=sha256, tokens=tokens)
            for name, (text, sha256, tokens) in zip(found.texts, found.protocols, strict=True)
        ],
        sets=[
            part
            for part in set_parts(session, found.method, found.sets, found.texts)
            if (part.samples, part.seq_len) in wanted
        ],
        timings=_timings(job),
    )


def symptoms_document(
    session: Session, name: str, formats: Sequence[str] = (), job: Job | None = None
) -> s.SymptomsDocument:
    """The document of a run on symptoms.

    Args:
        session: in which one has ended.
        name: how the user named the recipe: a format or a file.
        formats: those that some layer could not hold.
        job: its job; the session's last one if not given.
    """
    job = job or _last(session, "symptoms")
    command, found = job.command, job.read(p.Symptoms)
    assert isinstance(command, p.FindSymptoms)
    of, known = formats_of(session, command), session.continued.get(found.recipe, {})
    prompts = shown([known[each] for each in found.prompts if each in known])
    traced = session.traced.get(found.recipe)
    if traced is not None and traced.prompts != found.failing:
        traced = None  # of other texts
    return s.SymptomsDocument(
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        calibration=_calibration(session, "sequential" if any(map(_calibrated, of)) else ""),
        versions=session.versions,
        recipe=name,
        fallbacks=_fallbacks(session, _fell_back(session, formats)),
        sampling=sampling_part(command.sampling, session.settings.seed),
        rates=[rate_part(each) for each in rates(prompts)],
        alarms=len(alarms(prompts)),
        prompts=[prompt_part(each) for each in prompts],
        restored=[] if traced is None else [restored_part(each) for each in traced.ranked()],
        contrast=_contrast(traced),
        causes=[cause_part(each) for each in causes(session, prompts, traced, of)],
        tasks=[task_part(each) for each in found.tasks],
        divergence=UNSET if found.divergence is None else divergence_part(found.divergence),
        timings=_timings(job),
    )


def _contrast(traced: Traced | None) -> s.ContrastPart | UnsetType:
    if traced is None or traced.contrast is None:
        return UNSET
    return contrast_part(traced.contrast)


def eval_document(
    session: Session,
    score: p.RecipeScore,
    name: str,
    formats: Sequence[str] = (),
    job: Job | None = None,
) -> s.EvalDocument:
    """The document of an evaluation.

    Args:
        session: in which an evaluation has ended.
        score: what it measured.
        name: how the user named the recipe: a format or a file.
        formats: those that some layer could not hold.
        job: its job; the session's last evaluation if not given.
    """
    job = job or _last(session, "evaluate")
    return s.EvalDocument(
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        calibration=_calibration(session, score.calibration),
        versions=session.versions,
        baseline=_baseline(session),
        recipe=s.RecipePart(
            name=name,
            nll=finite(score.nll),
            ppl=finite(score.ppl),
            ppl_ci95=(finite(score.ppl_low), finite(score.ppl_high)),
            dnll=finite(score.dnll),
            dnll_se=finite(score.dnll_se),
            kl=finite(score.kl),
            kl_se=finite(score.kl_se),
            top1_agreement=finite(score.top1),
            bits_per_weight=finite(score.bits_per_weight),
            bits_all=_known(score.bits_all),
            bytes=score.bytes,
        ),
        texts=_on_texts(job),
        fallbacks=_fallbacks(session, _fell_back(session, formats)),
        timings=_timings(job),
    )


def _on_texts(job: Job) -> list[s.TextPart] | UnsetType:
    if not isinstance(job.command, p.MeasureTexts):
        return UNSET
    return [text_part(each) for each in job.read(p.MeasuredTexts).texts]


def diagnose_document(
    session: Session,
    format: str,
    job: Job | None = None,
    recipe: Mapping[str, str] | None = None,
    serving: Serving | None = None,
) -> s.DiagnoseDocument:
    """The document of a diagnosis.

    Args:
        session: in which a diagnosis has ended.
        format: canonical; whose damage is judged.
        job: its job; the session's last diagnosis if not given.
        recipe: whose errors inside the model were measured, by layer; None if none were.
        serving: what the verdict's mix may have; None for what some serving kernel takes.
    """
    job = job or _last(session, "diagnose")
    return s.DiagnoseDocument(
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        versions=session.versions,
        baseline=_baseline(session),
        verdict=verdict_part(session, format, serving),
        findings=finding_parts(session, format),
        layers=diagnosed_layers(session, format, recipe or {}, _tried(job)),
        errors=UNSET if recipe is None else errors_part(session, recipe),
        drift=UNSET if recipe is None else drift_parts(session, recipe),
        timings=_timings(job),
    )


def _tried(job: Job) -> int:
    """On how many layers a diagnosis tried other formats."""
    return job.command.fixes if isinstance(job.command, p.Diagnose) else 0


def plan_document(session: Session, planned: p.Planned, job: Job | None = None) -> s.PlanDocument:
    """The document of a plan.

    Args:
        session: in which a plan has ended.
        planned: what it found.
        job: its job; the session's last plan if not given.
    """
    job = job or _last(session, "plan")
    return s.PlanDocument(
        resumed=job.resumed,
        model=_model(session),
        protocol=_protocol(session),
        versions=session.versions,
        baseline=_baseline(session),
        timings=_timings(job),
        **plan_parts(session, planned),
    )


def report_document(
    session: Session,
    name: str,
    made: str,
    *,
    format: str = "",
    commands: Mapping[str, str] | None = None,
    histograms: Sequence[p.HistogramReady] = (),
    serving: Serving | None = None,
) -> s.ReportDocument:
    """All that a session knows, as one document.

    Args:
        session: of an open checkpoint, or a past one.
        name: the session's.
        made: the time, as ISO 8601 has it.
        format: canonical; whose effects verdict and findings are about, chosen if not given.
        commands: what reproduces the figures, by what it gives.
        histograms: of some layers.
        serving: what the verdict's mix may have; None for what some serving kernel takes.
    """
    shown = judged_format(session, format)
    read, ready = session.checkpoint, session.measured_with
    known = [key.format for key in session.effects.known("degrade") if key.by == "layer"]
    formats = list(dict.fromkeys(known))
    fell_back = _fell_back(session, {x.format for x in session.fallbacks})
    agreed = agreement_parts(session, formats, "degrade")
    warnings = dict.fromkeys(note.message for note in session.notices if note.level != "info")
    return s.ReportDocument(
        session=name,
        made=made,
        model=_model(session),
        architecture="" if read is None else read.architecture,
        versions=session.versions,
        protocol=UNSET if ready is None else ready.protocol,
        calibration=_calibration(session, "reference"),
        baseline=_baseline(session),
        control=_control(session),
        interval_factor=finite(session.interval_factor),
        format=shown,
        verdict=verdict_part(session, shown, serving) if shown else UNSET,
        findings=finding_parts(session, shown or "int4-g128"),
        recipe=report_recipe(session),
        layers=report_layers(session, shown, serving),
        histograms=[histogram(each) for each in histograms],
        fixes=tried_layers(session, shown) or UNSET,
        tried=tried_parts(session),
        plan=plan_part(session),
        compared=compared_parts(session),
        asked=asked_parts(session) or UNSET,
        calibration_sets=compared_sets(session) or UNSET,
        agreement={} if isinstance(agreed, UnsetType) else agreed,
        fallbacks=_fallbacks(session, fell_back),
        warnings=list(warnings),
        commands=dict(commands or {}),
    )


def export_document(
    session: Session,
    written: p.Exported,
    formats: Sequence[str] = (),
    job: Job | None = None,
) -> s.ExportDocument:
    """The document of an export.

    Args:
        session: in which an export has ended.
        written: its event.
        formats: those that some layer could not hold.
        job: its job; the session's last export if not given.
    """
    return s.ExportDocument(
        checkpoint=_model(session),
        recipe=written.recipe,
        to=written.to,
        codes=written.codes,
        folder=written.folder,
        bytes=written.bytes,
        bits_per_weight=finite(written.bits_per_weight),
        bits_all=_known(written.bits_all),
        layers=len(written.quantised),
        fallbacks=_fallbacks(session, _fell_back(session, formats)),
        notes=written.notes,
        versions=session.versions,
        timings=_timings(job or _last(session, "export")),
    )


def imatrix_document(session: Session, job: Job) -> s.ImatrixDocument:
    """The document of an importance matrix.

    Args:
        session: in which its job has ended.
        job: the job.
    """
    written = job.read(p.ImatrixWritten)
    return s.ImatrixDocument(
        checkpoint=_model(session),
        calibration=_calibration(session, "reference"),
        file=written.file,
        bytes=written.bytes,
        weights=written.weights,
        left=written.left,
        versions=session.versions,
        timings=_timings(job),
    )


def _known(figure: float) -> s.Number | UnsetType:
    """A figure that is 0 where an earlier version did not have it."""
    return finite(figure) if figure else UNSET


def _last(session: Session, kind: str) -> Job:
    return last_job(session, kind) or Job("", kind, kind, p.Unknown(kind))


def _timings(job: Job) -> dict[str, s.Number]:
    return {name: finite(seconds) for name, seconds in job.timings.items()}


def _model(session: Session) -> s.Model:
    read = session.checkpoint
    if read is None:
        raise EngineError("the run ended before the checkpoint was read")
    return s.Model(
        name=read.name, params=read.parameters, bytes=read.bytes, fingerprint=read.fingerprint
    )


def _protocol(session: Session) -> p.Protocol:
    if session.model is None:
        raise EngineError("the run ended before the model was loaded")
    return session.model.protocol


def _calibration(
    session: Session, mode: Literal["", "reference", "sequential"]
) -> s.CalibrationPart:
    known = session.calibration
    if not mode or known is None:
        return s.CalibrationPart()
    return s.CalibrationPart(
        text=known.text,
        text_sha256=known.text_sha256,
        column=known.column,
        documents=known.documents,
        skipped=known.skipped,
        tokens=known.tokens,
        seq_len=known.seq_len,
        seed=known.seed,
        mode=mode,
    )


def _calibrated(format: str) -> bool:
    return format != "kept" and needs_calibration(parse_format(format))


def _baseline(session: Session) -> s.BaselinePart | UnsetType:
    if (found := session.baseline) is None:
        return UNSET
    return s.BaselinePart(nll=finite(found.nll), ppl=finite(found.ppl))


def _control(session: Session) -> s.ControlPart | UnsetType:
    if (found := session.control) is None:
        return UNSET
    return s.ControlPart(
        max_abs_dnll=finite(found.max_abs_dnll),
        max_abs_kl=finite(found.max_abs_kl),
        floor_dnll=finite(found.floor_dnll),
        floor_kl=finite(found.floor_kl),
    )


def _triage_layers(session: Session) -> list[s.TriageLayer]:
    listed = json_figures("triage", "row")
    of_weights = json_figures("triage", "weights")
    of_error = json_figures("triage", "error", ERRORS)
    readers = [each.read.bind(Context(session)) for _, each in listed]
    of_acts = json_figures("triage", "activations")
    named = [path for path, _ in (*listed, *of_weights, *of_acts)]
    template = Template(s.TriageLayer, [*named, "errors"])
    error_template = Template(s.ErrorPart, [path for path, _ in of_error])
    found = []
    for row, known in enumerate(session.layers.weights):
        values = [read(row) for read in readers]
        errors: dict[str, s.ErrorPart] | None = None
        if known is not None:
            errors = {
                format: error_template.fill(of_fact(of_error, error, session))
                for format, error in known.errors.items()
            }
        acts = of_fact(of_acts, session.layers.activations[row], session)
        found.append(template.fill([*values, *of_fact(of_weights, known, session), *acts, errors]))
    return found


def _additivity(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> s.AdditivityPart | UnsetType:
    found = {
        format: s.FormatAdditivity(
            kl=finite(known.kl), dnll=finite(known.dnll), layers=known.layers
        )
        for format in formats
        if (known := session.effects.additivity.get(p.EffectKey(direction, format))) is not None
    }
    if not found:
        return UNSET
    first = next(iter(found.values()))
    return s.AdditivityPart(kl=first.kl, dnll=first.dnll, by_format=found)


def _fell_back(session: Session, formats: Collection[str]) -> list[_Fallen]:
    return [(x.layer, x.format, x.why, x.holds) for x in session.fallbacks if x.format in formats]


def _fallbacks(session: Session, found: Sequence[_Fallen]) -> list[s.LayerFallback]:
    """Each layer and format once, in the model's order."""
    once: dict[tuple[str, str], tuple[str, str]] = {}
    for layer, format, why, holds in found:
        once.setdefault((layer, format), (why, holds))
    last = len(session.layers.names)
    ordered = sorted(once.items(), key=lambda item: session.index.get(item[0][0], last))
    return [
        s.LayerFallback(layer=name, format=format, why=why, holds=holds or UNSET)
        for (name, format), (why, holds) in ordered
    ]
