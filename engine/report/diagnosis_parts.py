"""The verdict as a part of documents."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.diagnosis.verdict import verdict
from engine.report import schema as s
from engine.report.json import finite
from engine.report.verdicts import sentence
from engine.session import Session
from engine.session.artefact import OUTSIDE


def verdict_part(session: Session, format: str) -> s.VerdictPart | UnsetType:
    """The verdict on a format; missing while an effect is not known.

    Args:
        session: with effects.
        format: canonical.
    """
    found = verdict(session, format)
    if found is None:
        return UNSET
    mix: s.MixPart | UnsetType = UNSET
    if found.mix:
        mix = s.MixPart(
            kl=finite(found.mix_kl),
            ppl=finite(found.mix_ppl),
            bits_per_weight=finite(found.mix_bits),
            bytes=found.mix_bytes,
            layers={
                name: held
                for row, name in enumerate(session.layers.names)
                if session.layers.roles[row] not in OUTSIDE
                and (held := found.mix.get(name, session.kept(row))) != found.format
            },
        )
    return s.VerdictPart(
        format=found.format,
        kl=finite(found.kl),
        kl_se=finite(found.kl_se),
        ppl=finite(found.ppl),
        measured=found.measured,
        top5_share=finite(found.share),
        worst=list(found.worst),
        mix=mix,
        sentence=sentence(found),
    )
