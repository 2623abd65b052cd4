"""A finding as a part of a document."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.diagnosis.finding import Finding
from engine.report import schema as s
from engine.report.json import finite


def finding_part(found: Finding, fix: s.FixPart | UnsetType = UNSET) -> s.FindingPart:
    """A finding, with what mends it where that is known."""
    return s.FindingPart(
        id=found.id,
        severity=found.severity,
        layer=found.layer or UNSET,
        channels=list(found.channels) or UNSET,
        sentence=found.sentence,
        evidence={name: finite(value) for name, value in found.evidence.items()},
        fix=fix,
    )
