"""Tables of figures, made of a `View`: full precision, units in the names of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.report.figures import below_floor, delta_ppl
from engine.report.numbers import percent
from engine.session import correction, expected
from qtui.saved.view import Cell, Subject, Table, View
from qtui.views.reproduce import Verb, command, unsaid

IDENTITY = ("layer", "kind", "block", "role", "shape", "dtype", "marked")
"""Figures that stand in every table of layers."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "holds": ("holds", "changed"),
    "bits": ("stored_bits", "bits_per_weight"),
    "kl": (
        "kl_nats_per_token",
        "kl_se_nats_per_token",
        "below_floor",
        "estimated_kl_nats_per_token",
        "estimated_kl_se_nats_per_token",
        "corrected_kl_nats_per_token",
        "doubt",
    ),
    "dnll": (
        "dnll_nats_per_token",
        "dnll_se_nats_per_token",
        "estimated_dnll_nats_per_token",
        "estimated_dnll_se_nats_per_token",
    ),
    "dppl": ("dppl", "dppl_low", "dppl_high"),
    "top1": ("top1_agreement",),
    "error": ("relative_error", "sqnr_db", "max_abs_error", "mean_abs_error"),
    "outliers": ("outlier_fraction", "outlier_count", "outlier_sigma", "max_abs"),
    "kurtosis": ("kurtosis",),
}
"""Columns of the screen, by their id, with the figures that stand for them in a file."""
UNSHOWN = (
    "worst_column", "worst_column_sigma", "mean", "std", "range_ratio", "waste", "nan", "inf",
    "zero_rows", "dead_columns", "denormals",
)  # fmt: skip
"""Figures that have no column on the screen: in a file where all columns are asked for."""
OF_EFFECTS = ("kl", "dnll", "dppl", "top1")
WAYS: dict[p.Direction, str] = {"degrade": "sensitivity", "restore": "restoring"}
MEASURED, ESTIMATED = "measured", "estimated"

HISTOGRAM_BINS = p.AskHistogram("").bins


def why_not(subject: Subject, view: View) -> str:
    """Why there is nothing of that kind to save now, and what to do; empty where there is."""
    session = view.session
    row = None if view.layer is None else session.row(view.layer)
    if subject in ("histogram", "layer", "experts") and row is None:
        return "there is no layer under the cursor"
    match subject:
        case "table" if not session.layers.names:
            return "there are no layers yet: wait until the checkpoint is read"
        case "table" if not view.rows:
            return f"no layer matches the filter {view.filter!r}: there is no row to save"
        case "histogram" if view.layer not in session.histograms:
            return f"there is no histogram of {view.layer} yet: let the cursor rest on it"
        case "experts" if view.layer not in session.experts:
            fused = row is not None and session.layers.roles[row] == "experts"
            return f"{view.layer}: " + ("expand it first" if fused else "it has no experts")
        case "log" if not (view.log or session.fallbacks or session.notices):
            return "the log is empty: there is nothing to save"
        case "screen" if not view.screen:
            return "there is nothing on the screen to save"
        case "recipe" if not session.changed:
            return "no layer is changed: there is no recipe to save"
        case _:
            return ""


def table_of(subject: Subject, view: View) -> Table:
    """The figures of a subject.

    Raises:
        UsageError: there is nothing of that kind now; the message says what to do.
    """
    makers: dict[Subject, Callable[[View], Table]] = {
        "table": layers,
        "histogram": histogram,
        "layer": layer,
        "experts": experts,
        "log": log,
    }
    if reason := why_not(subject, view):
        raise UsageError(reason)
    return makers[subject](view)


def layers(view: View) -> Table:
    """The rows that are shown, in their order."""
    session = view.session
    chosen = [name for name in COLUMNS if not view.columns or name in view.columns]
    effects = any(name in OF_EFFECTS for name in chosen)
    names = [*IDENTITY, *(("format", "direction", "source", "tokens") if effects else ())]
    names += [figure for column in chosen for figure in COLUMNS[column]]
    names += [] if view.columns else UNSHOWN
    found = [figures(view, row) for row in view.rows]
    # What no row has is no column: nothing was estimated, or weights are not read yet.
    columns = tuple(
        name
        for name in names
        if name in IDENTITY or any(each.get(name) is not None for each in found)
    )
    known = sum(bool(each.get("source")) for each in found)
    swept = effects and known > 0
    what = f"{len(found)} of {len(session.layers.names)} layers of {_model(view)}"
    of_weights = {*COLUMNS["error"], *COLUMNS["outliers"], *COLUMNS["kurtosis"], *UNSHOWN}
    weighed = not of_weights.isdisjoint(columns)
    triage = _command(view, "triage", _formats(view) if "relative_error" in columns else ())
    return Table(
        schema="qtui.saved-table/1",
        title=f"{WAYS[view.direction]} of {what} in {view.format}"
        if swept
        else f"weights of {what}",
        command=_sweep_command(view, (view.format,), view.direction, found) if swept else triage,
        weights_command=triage if swept and weighed else "",
        columns=columns,
        rows=[tuple(each.get(name) for name in columns) for each in found],
        notes=_notes(view, order=True),
    )


def figures(view: View, row: int) -> dict[str, Cell]:
    """Everything known about one row; what is not known has no key."""
    session, rows = view.session, view.session.layers
    name = rows.names[row]
    found: dict[str, Cell] = {
        "layer": name,
        "kind": rows.kinds[row],
        "block": rows.blocks[row],
        "role": rows.roles[row],
        "shape": rows.shapes[row],
        "dtype": rows.dtypes[row],
        "marked": name in view.marked,
        "holds": rows.holds[row],
        "changed": rows.holds[row] != session.kept(row),
        "stored_bits": rows.bits[row],
        "bits_per_weight": rows.bits[row] / weights
        if (weights := math.prod(rows.shapes[row]))
        else None,
    }
    key = p.EffectKey(view.direction, view.format)
    measured, guess = session.sensitivity(row, key), session.estimate(row, key)
    known = measured or expected(session, row, key)
    if known is not None:
        found |= effect(view, known) | {"format": known.format, "direction": known.direction}
    if guess is not None:
        found |= estimated(view, guess)
    if (known_weights := rows.weights[row]) is not None:
        found |= statistics(known_weights)
        if (error := known_weights.errors.get(view.format)) is not None:
            found |= weight_error(error)
    return found


def estimated(view: View, guess: p.Estimate) -> dict[str, Cell]:
    """What gradients say of a layer's effect, beside what was measured of it."""
    fit = correction(view.session, guess.key)
    return {
        "estimated_kl_nats_per_token": guess.kl,
        "estimated_kl_se_nats_per_token": guess.kl_se,
        "corrected_kl_nats_per_token": None if fit is None else fit.kl(guess.kl),
        "estimated_dnll_nats_per_token": guess.dnll,
        "estimated_dnll_se_nats_per_token": guess.dnll_se,
        "doubt": guess.doubt or None,
    }


def effect(view: View, known: p.Sensitivity | p.Estimate) -> dict[str, Cell]:
    """What changing a layer alone does, measured or estimated.

    An estimate is the corrected one where there is a fit. Its ΔPPL is the baseline's times
    ``exp(Δ) − 1``; its interval is that of its ΔNLL.
    """
    found: dict[str, Cell] = {
        "source": MEASURED if isinstance(known, p.Sensitivity) else ESTIMATED,
        "tokens": known.tokens,
        "kl_nats_per_token": known.kl,
        "kl_se_nats_per_token": known.kl_se,
        "dnll_nats_per_token": known.dnll,
        "dnll_se_nats_per_token": known.dnll_se,
    }
    if isinstance(known, p.Sensitivity):
        return found | {
            "dppl": known.dppl,
            "dppl_low": known.dppl_low,
            "dppl_high": known.dppl_high,
            "top1_agreement": known.top1,
            "below_floor": True if below_floor(view.session, known) else None,
        }
    half = view.session.interval_factor * known.dnll_se
    for name, offset in (("dppl", 0.0), ("dppl_low", -half), ("dppl_high", half)):
        moved = msgspec.structs.replace(known, dnll=known.dnll + offset)
        found[name] = delta_ppl(view.session, moved)
    return found


def statistics(weights: p.LayerWeights) -> dict[str, Cell]:
    """What triage found in a layer's weights."""
    return {
        "outlier_fraction": weights.outliers.fraction,
        "outlier_count": weights.outliers.count,
        "outlier_sigma": weights.outliers.sigma,
        "max_abs": weights.outliers.max_abs,
        "worst_column": weights.worst_column if weights.worst_column >= 0 else None,
        "worst_column_sigma": weights.worst_column_sigma if weights.worst_column >= 0 else None,
        "kurtosis": weights.kurtosis,
        **{name: getattr(weights, name) for name in UNSHOWN[2:]},
    }


def weight_error(error: p.WeightError) -> dict[str, Cell]:
    """Distance between a weight and its quantised value."""
    return {
        "relative_error": error.relative,
        "sqnr_db": error.sqnr_db,
        "max_abs_error": error.max_abs,
        "mean_abs_error": error.mean_abs,
    }


def layer(view: View) -> Table:
    """All that is known about the layer under the cursor, a figure a row."""
    name, row = _under_cursor(view)
    session = view.session
    plain = figures(msgspec.structs.replace(view, format=""), row)
    rows: list[tuple[Cell, ...]] = [(key, "", "", value) for key, value in plain.items()]
    effects, swept = session.effects, []
    for key in effects.known():
        for column in (effects.measured.get(key), effects.estimated.get(key)):
            if column is None or (known := column[row]) is None:
                continue
            found = effect(view, known)
            source = found.pop("source")
            if isinstance(known, p.Estimate) and known.doubt:
                found["doubt"] = known.doubt
            lead = "" if key.direction == "degrade" else f"{key.direction}_"
            rows += [
                (f"{lead}{each}", key.format, source, x)
                for each, x in found.items()
                if x is not None
            ]
            swept.append(key.format)
    weights = session.layers.weights[row]
    read = tuple(weights.errors) if weights is not None else ()
    for format in read:
        assert weights is not None
        errors = weight_error(weights.errors[format])
        rows += [(each, format, "", value) for each, value in errors.items()]
    if weights is not None:
        rows += [("refused", format, "", why) for format, why in weights.refused.items()]
    for number, change in enumerate(session.history[: session.position], 1):
        rows += [
            (f"change_{number}", after, "", f"from {before}")
            for changed, before, after in zip(
                change.layers, change.before, change.after, strict=True
            )
            if changed == name
        ]
    triage = _command(view, "triage", ("--formats", ",".join(read)) if read else ())
    sweep = _command(view, "sweep", ("--formats", ",".join(dict.fromkeys(swept))))
    return Table(
        schema="qtui.saved-layer/1",
        title=f"layer {name} of {_model(view)}",
        command=sweep if swept else triage,
        weights_command=triage if swept and weights is not None else "",
        columns=("figure", "format", "source", "value"),
        rows=rows,
        notes=_notes(view),
    )


def histogram(view: View) -> Table:
    """Counts of the weights of the layer under the cursor, a bin a row."""
    name, _ = _under_cursor(view)
    found = view.session.histograms[name]
    extra = ["--histogram", name]
    if len(found.counts) != HISTOGRAM_BINS:
        extra += ["--bins", str(len(found.counts))]
    if found.format:
        extra += ["--formats", found.format]
    notes = _notes(view) | {"layer": name, "mean": repr(found.mean), "std": repr(found.std)}
    if found.format:
        notes["grid"] = " ".join([f"{found.format}:", *map(repr, found.grid)])
        notes["step"] = repr(found.step)
    edges = bin_edges(found)
    return Table(
        schema="qtui.saved-histogram/1",
        title=f"weights of {name} of {_model(view)} in {len(found.counts)} bins",
        command=_command(view, "triage", [*extra, "--json", "-"]),
        columns=("low", "high", "count"),
        rows=list(zip(edges, edges[1:], found.counts, strict=False)),
        notes=notes,
    )


def bin_edges(found: p.HistogramReady) -> list[float]:
    """Edges of the bins, one more than there are bins."""
    bins = len(found.counts)
    width = (found.high - found.low) / bins if bins else 0.0
    return [found.low + number * width for number in range(bins)] + [found.high]


def experts(view: View) -> Table:
    """The experts of the fused layer under the cursor, one a row."""
    name, _ = _under_cursor(view)
    found = view.session.experts[name]
    read = tuple(found.relative)
    return Table(
        schema="qtui.saved-experts/1",
        title=f"{len(found.std)} experts of {name} of {_model(view)}",
        command=_command(
            view, "triage",
            ["--experts", name, *(("--formats", ",".join(read)) if read else ()), "--json", "-"],
        ),
        columns=(
            "expert", "std", "max_abs", "outlier_fraction", "nonfinite",
            *(f"relative_error_{format}" for format in read),
        ),
        rows=[
            (number, *each)
            for number, each in enumerate(
                zip(found.std, found.max_abs, found.outliers, found.nonfinite,
                    *found.relative.values(), strict=True)
            )
        ],
        notes=_notes(view) | {"layer": name},
    )  # fmt: skip


def log(view: View) -> Table:
    """What happened, oldest first, after the fallbacks, each with its layer.

    Times are of the wall clock, with the offset of its zone; empty where it is not known.
    """
    session = view.session
    rows: list[tuple[Cell, ...]] = [
        (None, "warning", 1, each.layer, each.format, each.why) for each in session.fallbacks
    ]
    if view.log:
        rows += [
            (_moment(each.time), each.level, each.times, "", "", each.text) for each in view.log
        ]
    else:
        rows += [(None, each.level, 1, "", "", each.message) for each in session.notices]
    return Table(
        schema="qtui.saved-log/1",
        title=f"log of {_model(view)}",
        command=_command(view, "open"),
        columns=("time", "level", "times", "layer", "format", "message"),
        rows=rows,
        notes=_notes(view),
    )


def _moment(seconds: float | None) -> str | None:
    """``2026-01-31T09:26:53+01:00``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


# --- what stands beside every table -----------------------------------------------------------


def _under_cursor(view: View) -> tuple[str, int]:
    assert view.layer is not None
    return view.layer, view.session.index[view.layer]


def _model(view: View) -> str:
    read = view.session.checkpoint
    return read.name if read is not None else view.source


def _formats(view: View) -> tuple[str, ...]:
    return ("--formats", view.format) if view.format else ()


def _command(view: View, verb: Verb, extra: Sequence[str] = ()) -> str:
    return command(view.session.settings, view.source, verb, extra)


def _sweep_command(
    view: View, formats: tuple[str, ...], direction: p.Direction, found: list[dict[str, Cell]]
) -> str:
    """The sweep that gives these figures again: of what is only estimated, nothing is measured."""
    extra = ["--formats", ",".join(formats)]
    if direction != "degrade":
        extra += ["--direction", direction]
    if not any(each.get("source") == MEASURED for each in found):
        extra += ["--exact", "none"]
    return _command(view, "sweep", extra)


def _notes(view: View, *, order: bool = False) -> dict[str, str]:
    session = view.session
    notes: dict[str, str] = {}
    if (read := session.checkpoint) is not None:
        notes["checkpoint"] = f"{read.name}, {read.architecture}, fingerprint {read.fingerprint}"
    if (model := session.model) is not None:
        notes["protocol"] = protocol_in_words(model.protocol)
    if (baseline := session.baseline) is not None:
        notes["baseline"] = f"ppl {baseline.ppl!r}, nll {baseline.nll!r} nats per token"
    key = p.EffectKey(view.direction, view.format)
    agreement = session.effects.agreement.get(key) if order else None
    if agreement is not None:
        notes["estimates"] = (
            f"rank correlation with what was measured {agreement.rank_kl!r} (KL), "
            f"{agreement.rank_dnll!r} (dNLL) over {agreement.layers} layers, "
            f"median of measured over estimated KL {agreement.ratio!r}"
        )
    if session.versions:
        notes["versions"] = ", ".join(f"{name} {each}" for name, each in session.versions.items())
    if order and view.order:
        notes["order"] = view.order
    if order and view.filter:
        notes["filter"] = view.filter
    if left_out := unsaid(session.settings):
        notes["not in the command"] = "; ".join(left_out)
    return notes


def protocol_in_words(protocol: p.Protocol) -> str:
    """What a perplexity stands on, in one line."""
    return (
        f"{protocol.text} (sha256 {protocol.text_sha256[:16]}), {protocol.tokens} tokens in "
        f"{protocol.windows} windows of {protocol.seq_len}, stride {protocol.stride}, "
        f"{protocol.dtype} on {protocol.device}, seed {protocol.seed}, "
        f"intervals {percent(protocol.interval)}"
    )
