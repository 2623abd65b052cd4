"""Findings of layers that are stored quantised: what their codes and scales say by themselves."""

from __future__ import annotations

from collections.abc import Iterator

from engine.diagnosis.finding import Finding, Looked
from engine.diagnosis.of_codes import code_findings


def stored_otherwise(looked: Looked) -> Iterator[Finding]:
    """Layers that are stored in another way than the config says."""
    found = [known for _, known in looked.weights if known.codes and known.codes.declared]
    if not found or (codes := found[0].codes) is None:
        return
    yield Finding(
        id="stored-otherwise",
        severity="alert",
        layer=found[0].layer if len(found) == 1 else "",
        sentence=f"{len(found)} layers are stored as {codes.read_as}, declared {codes.declared}: "
        "readers that trust the config are off by one step everywhere",
        evidence={"layers": len(found)},
    )


def codes_and_scales(looked: Looked) -> Iterator[Finding]:
    """Layers whose codes and scales no quantiser writes, or only a careless one."""
    for row, known in looked.weights:
        if known.codes is not None:
            shape = looked.session.layers.shapes[row]
            yield from code_findings(
                known.layer,
                known.codes,
                looked.weights_of(row),
                known.zero_rows,
                shape[-2],
                looked.limits,
            )
