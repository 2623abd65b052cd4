"""The notes of a saved table: the command, the protocol, the versions."""

from __future__ import annotations

from collections.abc import Sequence

from engine import protocol as p
from engine.report.reproduce import Verb, command, not_in_command
from engine.report.wording import percent
from qtui.saved.view import View


def under_cursor(view: View) -> tuple[str, int]:
    """The layer under the cursor, and its row."""
    assert view.layer is not None
    return view.layer, view.session.index[view.layer]


def model_name(view: View) -> str:
    """The checkpoint's name."""
    read = view.session.checkpoint
    return read.name if read is not None else view.source


def formats_option(view: View) -> tuple[str, ...]:
    """The option that names the shown format; nothing where there is none."""
    return ("--formats", view.format) if view.format else ()


def measured_by(view: View, verb: Verb, extra: Sequence[str] = ()) -> str:
    """The command that measures what is saved again."""
    return command(view.session.settings, view.source, verb, extra)


def notes_of(view: View, *, order: bool = False) -> dict[str, str]:
    """What has to be known to read figures; with ``order``, how the rows were chosen too."""
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
    if view.serving is not None and view.serving.to:
        notes["tuned for"] = f"{view.serving.to}: advice is of the formats that it holds"
    if order and view.order:
        notes["sorted by"] = view.order
    if order and view.filter:
        notes["filter"] = view.filter
    if left_out := not_in_command(session.settings):
        notes["not in the command"] = "; ".join(left_out)
    return notes


def protocol_in_words(protocol: p.Protocol) -> str:
    """The protocol behind a perplexity, in one line."""
    return (
        f"{protocol.text_read} (sha256 {protocol.text_sha256[:16]}), {protocol.tokens} tokens in "
        f"{protocol.windows} windows of {protocol.seq_len}, stride {protocol.stride}, "
        f"{protocol.dtype} on {protocol.device}, seed {protocol.seed}, "
        f"intervals {percent(protocol.interval)}"
    )
