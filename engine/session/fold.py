"""`apply`: how each event changes a session; nothing else changes it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, TypeAlias, get_args

import msgspec

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import needs_calibration, parse_format
from engine.session.artefact import bits_as_stored
from engine.session.prediction import uniform_recipe
from engine.session.state import (
    Calibrating,
    Change,
    Compared,
    Effects,
    Errors,
    Job,
    Layers,
    Session,
    Traced,
    Tried,
    is_opening,
    kept_format,
    recipe_hash,
)
from engine.session.tried import layers_of

Dirty: TypeAlias = Literal[
    "checkpoint", "layers", "model", "holds", "weights", "baseline", "measured", "recipe", "jobs",
    "stage", "notices", "gauges", "histogram", "experts", "errors", "ranges", "fixes",
    "compared", "symptoms", "calibrating",
]  # fmt: skip

MAX_NOTICES = 200
MAX_HISTOGRAMS = 64
MAX_EXPERTS = 16
MAX_ERROR_MAPS = 16


def apply(session: Session, event: p.AnyEvent, seq: int = 0) -> frozenset[Dirty]:
    """Fold one event into ``session`` and return the parts that changed.

    Args:
        session: changed in place.
        event: journalled or transient.
        seq: its number in the journal, 0 for transient events.
    """
    if seq:
        session.seq = seq
    match event:
        case p.Opened():
            return _opened(session, event)
        case p.CheckpointRead():
            return _checkpoint_read(session, event)
        case p.LayersListed():
            return _layers_listed(session, event)
        case p.ArtefactOpened() if event.version != p.COMPARISON_VERSION:
            session.compared.pop(event.fingerprint, None)  # its facts are left out with it
            return frozenset({"compared"})
        case p.ArtefactOpened():
            before = session.compared.get(event.fingerprint)
            if before is None:
                session.compared[event.fingerprint] = Compared(event)
            else:
                before.opened = event
            return frozenset({"compared"})
        case p.ModelReady():
            return _model_ready(session, event)
        case p.Calibrated():
            return _calibrated(session, event)
        case p.RecipeChanged():
            return _recipe_changed(session, event)
        case p.JobStarted():
            if isinstance(event.command, p.MeasureRecipe) and event.recipe:
                session.tried[session.at].recipe = event.recipe
            session.jobs[event.job] = Job(
                id=event.job, kind=event.kind, title=event.title, command=event.command,
                urgency=event.urgency, total=event.total, recipe=event.recipe,
            )  # fmt: skip
            return frozenset({"jobs"})
        case p.Progress():
            if (job := session.jobs.get(event.job)) is not None and job.status == "running":
                job.done, job.total, job.in_bytes = event.done, event.total, event.in_bytes
                job.seconds_left, job.phase = event.seconds_left, event.phase
                job.subject, job.format, job.detail = event.subject, event.format, event.detail
            return frozenset({"jobs"})
        case p.Workers():
            if (job := session.jobs.get(event.job)) is not None and job.status == "running":
                job.workers = event.workers
            return frozenset({"jobs"})
        case p.JobFirst():
            if (job := session.jobs.get(event.job)) is not None:
                job.place = min(each.place for each in session.jobs.values()) - 1
            return frozenset({"jobs"})
        case p.JobEnded():
            return _job_ended(session, event)
        case p.RecipeNamed():
            session.tried[event.number].name = event.name
            return frozenset({"recipe"})
        case p.TunedFor():
            session.tuned_for = event
            return frozenset({"holds", "recipe"})
        case p.Fallback():
            session.fallbacks.setdefault(event)
            return frozenset({"notices"})
        case p.Notice():
            session.notices = [*session.notices[-MAX_NOTICES:], event]
            return frozenset({"notices"})
        case p.Exported():
            message = f"exported to {event.folder}"
            session.notices = [*session.notices[-MAX_NOTICES:], p.Notice("info", message)]
            return frozenset({"notices"})
        case p.Refused():
            notice = p.Notice("error", event.message)
            session.notices = [*session.notices[-MAX_NOTICES:], notice]
            return frozenset({"notices"})
        case p.Learned():
            dirty: set[Dirty] = set()
            for fact in event.facts:
                dirty.add(_learn(session, fact))
            return frozenset(dirty)
        case p.Stage():
            # A transient may arrive after the job it is about has ended: ignore it.
            if is_opening(session):
                session.stage = event
            return frozenset({"stage"})
        case p.Continuing():
            job = session.jobs.get(event.job)
            if job is not None and job.status == "running":  # it may arrive after its job has ended
                session.continuing = event
            return frozenset({"symptoms"})
        case p.RecipePartial():
            session.partial = event.score
            return frozenset({"recipe"})
        case p.Agreement():
            session.effects.agreement[event.key] = event
            return frozenset({"measured"})
        case p.HistogramReady():
            session.histograms.pop(event.layer, None)
            session.histograms[event.layer] = event
            while len(session.histograms) > MAX_HISTOGRAMS:
                session.histograms.pop(next(iter(session.histograms)))
            return frozenset({"histogram"})
        case p.ExpertsReady():
            session.experts.pop(event.layer, None)
            session.experts[event.layer] = event
            while len(session.experts) > MAX_EXPERTS:
                session.experts.pop(next(iter(session.experts)))
            return frozenset({"experts"})
        case p.ErrorMapReady():
            maps = session.errors.maps
            maps.pop(event.layer, None)
            maps[event.layer] = event
            while len(maps) > MAX_ERROR_MAPS:
                maps.pop(next(iter(maps)))
            return frozenset({"errors"})
        case p.Gauges():
            session.gauges = event
            return frozenset({"gauges"})
        case p.Clients() | p.WindowSums():
            return frozenset()  # an answer to who asked, and no part of the session


def _opened(session: Session, event: p.Opened) -> frozenset[Dirty]:
    if event.settings.fresh:
        empty = Session(seq=session.seq)
        for field in Session.__struct_fields__:
            setattr(session, field, getattr(empty, field))
    if _calibration(session.settings) != _calibration(event.settings):
        session.fixes = {}
    session.source, session.settings, session.versions = (
        event.source,
        event.settings,
        event.versions,
    )
    # A new engine: jobs of the previous one are over, its recipe and facts remain.
    session.jobs, session.notices, session.fallbacks = {}, [], {}
    session.stage = session.gauges = None
    session.model = session.partial = session.calibration = None
    return frozenset(get_args(Dirty))


def _calibration(settings: p.Settings) -> tuple[object, ...]:
    """Settings that decide which inputs layers are tried on, and in which arithmetic."""
    each = settings
    text = each.calib, each.calib_tokens, each.seq_len, each.seed, each.bos, each.imatrix
    return *text, each.dtype, each.device


def _under(session: Session) -> str:
    """What effects and scores depend on beside the protocol, as text."""
    return repr((sorted(session.versions.items()), _calibration(session.settings)))


def _calibrated(session: Session, event: p.Calibrated) -> frozenset[Dirty]:
    session.calibration = event
    name = session.settings.imatrix
    kind: Literal["text", "imatrix"]
    kind = "imatrix" if name and PurePath(name).name == event.text else "text"
    before = session.calibrated.get(kind)
    session.calibrated[kind] = event
    if before is None or before == event:
        return frozenset({"model"})
    # The same setting, and another text: a file was written anew, or another one was found.
    effects = session.effects
    session.effects = Effects(
        **{
            field: {
                key: value
                for key, value in getattr(effects, field).items()
                if not _may_be_calibrated(key.format)
            }
            for field in Effects.__struct_fields__
        }
    )
    plain = [
        recipe
        for recipe in (layers_of(session, number) for number in range(len(session.tried)))
        if not any(map(_may_be_calibrated, set(recipe.values())))
    ]
    plain += [uniform_recipe(session, key.format) for key in session.effects.known("degrade")]
    kept = set(map(recipe_hash, plain))
    session.scores = {recipe: x for recipe, x in session.scores.items() if recipe in kept}
    session.fixes = {
        layer: {format: x for format, x in tried.items() if not _may_be_calibrated(format)}
        for layer, tried in session.fixes.items()
    }
    return frozenset({"model", "measured", "recipe", "fixes"})


def _may_be_calibrated(format: str) -> bool:
    """Whether calibration inputs affect a format, as far as is known: a plugin may be missing."""
    try:
        return needs_calibration(parse_format(format))
    except FormatError:
        return True


def _checkpoint_read(session: Session, event: p.CheckpointRead) -> frozenset[Dirty]:
    before, session.checkpoint = session.checkpoint, event
    if before is None or before.fingerprint == event.fingerprint:
        return frozenset({"checkpoint"})
    # Another checkpoint at the same path: results of the old one do not apply.
    session.layers.weights = [None] * len(session.layers.names)
    session.layers.activations = [None] * len(session.layers.names)
    session.layers.swaps = ()
    session.histograms, session.experts = {}, {}
    session.ranges, session.fixes = {}, {}
    session.baseline = session.control = session.partial = None
    session.effects, session.errors, session.scores = Effects(), Errors(), {}
    session.measured_with = None
    session.compared, session.calibrating = {}, Calibrating()
    return frozenset(get_args(Dirty))


def _layers_listed(session: Session, event: p.LayersListed) -> frozenset[Dirty]:
    old, old_index = session.layers, session.index
    session.index = {name: row for row, name in enumerate(event.names)}
    before = [old_index.get(name) for name in event.names]
    bits = event.bits or [
        bits_as_stored(s, d) for s, d in zip(event.shapes, event.dtypes, strict=True)
    ]
    changed = [
        row if row is not None and name in session.changed and old.shapes[row] == shape else None
        for name, row, shape in zip(event.names, before, event.shapes, strict=True)
    ]
    session.layers = Layers(
        names=event.names,
        kinds=event.kinds,
        blocks=event.blocks,
        roles=event.roles,
        shapes=event.shapes,
        dtypes=event.dtypes,
        own_bits=bits,
        holds=[
            kept_format(dtype) if row is None else old.holds[row]
            for row, dtype in zip(changed, event.dtypes, strict=True)
        ],
        bits=[bits[new] if row is None else old.bits[row] for new, row in enumerate(changed)],
        weights=[None if row is None else old.weights[row] for row in before],
        activations=[None if row is None else old.activations[row] for row in before],
        groups=list(event.groups),
        tied=event.tied,
        swaps=old.swaps,
    )
    session.effects = session.effects.relisted(before)
    session.changed = {
        name: held
        for row, (name, held) in enumerate(zip(event.names, session.layers.holds, strict=True))
        if held != session.kept(row)
    }
    session.other_bytes = event.other_bytes
    return frozenset({"layers", "holds", "weights", "measured"})


def _model_ready(session: Session, event: p.ModelReady) -> frozenset[Dirty]:
    before, under = session.measured_with, _under(session)
    session.model = session.measured_with = event
    session.stage = session.partial = None
    same = before is not None and before.protocol == event.protocol
    if not same or session.measured_under != under:
        # These facts are not comparable with those to come; the store sends matching ones again.
        session.baseline = session.control = None
        session.effects, session.scores, session.calibrated = Effects(), {}, {}
    session.measured_under = under
    if session.errors.protocol != event.protocol:  # no job sends these again by itself
        session.errors = Errors(protocol=event.protocol, maps=session.errors.maps)
    if not same:
        for found in session.compared.values():
            found.score, found.restored = None, {}
        session.calibrating, session.continued, session.traced = Calibrating(), {}, {}
    return frozenset(
        {"model", "stage", "baseline", "measured", "recipe", "errors", "compared", "calibrating"}
    )


def _recipe_changed(session: Session, event: p.RecipeChanged) -> frozenset[Dirty]:
    for layer, held, bits in zip(event.layers, event.after, event.bits, strict=True):
        row = session.index.get(layer)
        if row is None:
            continue  # the model does not have this layer after all
        session.layers.holds[row] = held
        session.layers.bits[row] = bits
        if held == session.kept(row):
            session.changed.pop(layer, None)
        else:
            session.changed[layer] = held
    match event.how:
        case "set":
            left = session.at
            if event.to is None:
                session.tried.append(Tried(left, event.layers, event.after))
                session.at = len(session.tried) - 1
            else:
                session.at = event.to
            step = Change(event.layers, event.before, event.after, left, session.at)
            session.history = [*session.history[: session.position], step]
            session.position += 1
        case "undo":
            session.position -= 1
            session.at = session.history[session.position].left
        case "redo":
            session.at = session.history[session.position].reached
            session.position += 1
    session.partial = None
    return frozenset({"holds", "recipe"})


def _job_ended(session: Session, event: p.JobEnded) -> frozenset[Dirty]:
    job = session.jobs.get(event.job)
    if job is None:
        job = session.jobs[event.job] = Job(
            event.job, event.kind, event.kind, p.Unknown(event.kind)
        )
    job.status, job.message, job.exit_code = event.status, event.message, event.exit_code
    job.resumed, job.measured, job.timings = event.resumed, event.measured, event.timings
    job.result = event.result
    if event.status == "done":
        job.done = job.total
    job.seconds_left, job.workers = 0.0, ()
    if event.kind == "open":
        session.stage = None
    if session.continuing is not None and session.continuing.job == event.job:
        session.continuing = None
    if event.status != "failed":
        return frozenset({"jobs", "stage"})
    session.notices = [*session.notices[-MAX_NOTICES:], p.Notice("error", event.message)]
    return frozenset({"jobs", "stage", "notices"})


def _compared(
    session: Session,
    fact: p.StoredLayer | p.ArtefactLayer | p.ArtefactScore | p.ArtefactTable | p.LayerRestored,
) -> Dirty:
    found = session.compared.get(fact.artefact)
    if found is not None:
        match fact:
            case p.StoredLayer():
                found.stored[fact.layer] = fact
            case p.ArtefactLayer():
                found.layers[fact.layer] = fact
            case p.ArtefactScore():
                found.score = fact
            case p.ArtefactTable():
                found.tables[fact.logits] = fact.table
            case p.LayerRestored():
                found.restored[fact.layer] = fact
    return "compared"


def _learn(session: Session, fact: p.AnyFact) -> Dirty:
    match fact:
        case p.LayerWeights():
            if (row := session.index.get(fact.layer)) is not None:
                session.layers.weights[row] = _merged(session.layers.weights[row], fact)
            return "weights"
        case p.Swapped():
            session.layers.swaps = fact.swaps
            return "weights"
        case p.LayerError():
            if (row := session.index.get(fact.layer)) is not None:
                session.layers.weights[row] = _with_error(session.layers.weights[row], fact)
            return "weights"
        case p.LayerRanges():
            session.ranges[fact.layer] = fact
            return "ranges"
        case p.FormatTried():
            session.fixes.setdefault(fact.layer, {})[fact.format] = fact
            return "fixes"
        case p.LayerActivations():
            if (row := session.index.get(fact.layer)) is not None:
                session.layers.activations[row] = fact
            return "weights"
        case p.OutputError():
            session.errors.outputs.setdefault(fact.layer, {})[fact.format] = fact
            return "errors"
        case p.Drift():
            session.errors.drifts[fact.recipe] = fact
            return "errors"
        case (
            p.StoredLayer()
            | p.ArtefactLayer()
            | p.ArtefactScore()
            | p.ArtefactTable()
            | p.LayerRestored()
        ):
            return _compared(session, fact)
        case p.SymptomRestored() | p.SymptomCure() | p.SymptomContrast():
            traced = session.traced.get(fact.recipe)
            if traced is None or traced.prompts != fact.prompts:
                traced = session.traced[fact.recipe] = Traced(fact.prompts)
            if isinstance(fact, p.SymptomRestored):
                traced.restored[fact.unit] = fact
            elif isinstance(fact, p.SymptomContrast):
                traced.contrast = fact
            elif fact not in traced.cures:
                traced.cures = [*traced.cures, fact]
            return "symptoms"
        case (
            p.Likelihoods() | p.RecipeTable() | p.RecipeOnText()
        ):  # only the store needs them: what they say is in the job's result
            return "jobs"
        case p.CalibrationCheck():
            session.calibrating.checks[fact.key] = fact
            return "calibrating"
        case p.CalibrationScore():
            session.calibrating.scores[fact.key] = fact
            return "calibrating"
        case p.Continued():
            session.continued.setdefault(fact.recipe, {})[fact.prompt] = fact
            return "symptoms"
        case p.Baseline():
            session.baseline = fact
            return "baseline"
        case p.Control():
            session.control = fact
            return "baseline"
        case p.Sensitivity() if fact.by != "layer":
            session.effects.units.setdefault(fact.key, {})[fact.layer] = fact
            return "measured"
        case p.Sensitivity():
            column = session.effects.measured.setdefault(
                fact.key, [None] * len(session.layers.names)
            )
            if (row := session.index.get(fact.layer)) is not None:
                column[row] = fact
            return "measured"
        case p.Estimate() if fact.by != "layer":
            session.effects.estimated_units.setdefault(fact.key, {})[fact.layer] = fact
            return "measured"
        case p.Estimate():
            estimates = session.effects.estimated.setdefault(
                fact.key, [None] * len(session.layers.names)
            )
            if (row := session.index.get(fact.layer)) is not None:
                estimates[row] = fact
            return "measured"
        case p.RecipeScore():
            session.scores[fact.recipe] = fact
            current = session.tried[session.at]
            if not current.recipe and fact.recipe == recipe_hash(session.changed):
                current.recipe = fact.recipe
            for tried in session.tried:
                if tried.recipe == fact.recipe:
                    tried.measured = True
            return "recipe"
        case p.FurtherEstimate():
            return "measured"  # of use only to the plan that asked for it
        case p.Additivity():
            session.effects.additivity[fact.key] = fact
            return "measured"


def _merged(known: p.LayerWeights | None, fact: p.LayerWeights) -> p.LayerWeights:
    """Keep errors in other formats that were known already, and no sketches."""
    fact = msgspec.structs.replace(fact, rows=b"", columns=b"")
    if known is None or known.outliers.sigma != fact.outliers.sigma:
        return fact
    return msgspec.structs.replace(
        fact,
        errors={**known.errors, **fact.errors},
        refused={**known.refused, **fact.refused},
    )


def _with_error(known: p.LayerWeights | None, fact: p.LayerError) -> p.LayerWeights | None:
    """A layer's weights with one more error; None if its statistics are not known."""
    if known is None:
        return None
    if fact.error is None:
        refused = {**known.refused, fact.format: fact.refused}
        return msgspec.structs.replace(known, refused=refused)
    return msgspec.structs.replace(known, errors={**known.errors, fact.format: fact.error})
