"""Findings of what layers are given, and of the calibration text behind that."""

from __future__ import annotations

from collections.abc import Iterator

from engine import protocol as p
from engine.diagnosis.finding import Finding, Looked
from engine.session.artefact import OUTSIDE

NAMED = 8
"""Channels of a layer that a sentence names."""


def input_channels(looked: Looked) -> Iterator[Finding]:
    """Input channels far above the others; one that recurs in many blocks is said once."""
    layers, limits = looked.session.layers, looked.limits
    # By width too: channels of the residual stream and of an MLP's inside have other numbers.
    found: dict[tuple[int, int], list[p.LayerActivations]] = {}
    for each in layers.activations:
        if each is None or each.shared_with != each.layer:
            continue
        given = each.input
        for channel, most in zip(given.outlier_channels, given.outlier_maxima, strict=True):
            if given.channel_median > 0 and most > limits.channel_ratio * given.channel_median:
                found.setdefault((given.channels, channel), []).append(each)
    alone: dict[str, list[tuple[float, int]]] = {}
    blocks = len({block for block in layers.blocks if block >= 0})
    for (_, channel), where in found.items():
        acts = {layers.blocks[looked.session.index[each.layer]] for each in where} - {-1}
        if blocks > 2 and len(acts) >= limits.recurring * blocks:
            yield Finding(
                id="massive-channel",
                severity="warning",
                channels=(channel,),
                sentence=f"channel {channel} is an outlier in the inputs of {len(acts)} of "
                f"{blocks} blocks: rounding inputs to 8 bits needs +smooth or +outlier6",
                evidence={"blocks": len(acts)},
            )
            continue
        for each in where:
            times = each.input.outlier_maxima[each.input.outlier_channels.index(channel)]
            times /= each.input.channel_median
            alone.setdefault(each.layer, []).append((times, channel))
    yield from map(_of_a_layer, alone, alone.values())


def _of_a_layer(layer: str, found: list[tuple[float, int]]) -> Finding:
    """Channels that stand out in one layer, the largest first."""
    found.sort(reverse=True)
    named = ", ".join(str(channel) for _, channel in found[:NAMED])
    more = ", …" if len(found) > NAMED else ""
    who = f"channels {named}{more} reach up to" if len(found) > 1 else f"channel {named} reaches"
    return Finding(
        id="input-channel",
        severity="note",
        layer=layer,
        channels=tuple(channel for _, channel in found),
        sentence=f"input {who} {found[0][0]:.0f}× the median channel",
        evidence={"ratio": found[0][0]},
    )


def massive_token(looked: Looked) -> Iterator[Finding]:
    """A position whose norm dwarfs all others', where it is largest."""
    worst: p.LayerActivations | None = None
    times = looked.limits.massive
    for each in looked.session.layers.activations:
        if each is None or not each.input.median_norm > 0:
            continue
        ratio = each.input.largest_norm / each.input.median_norm
        if ratio > times:
            worst, times = each, ratio
    if worst is not None:
        place = f"position {worst.input.position}" if worst.input.position >= 0 else "one token"
        yield Finding(
            id="massive-token",
            severity="note",
            layer=worst.layer,
            sentence=f"the norm at {place} is {times:.0f}× the median, in {worst.input.massive:,} "
            f"of {worst.tokens:,} tokens at least 20×: one scale for all inputs loses the others",
            evidence={"ratio": times, "position": worst.input.position},
        )


def unseen_experts(looked: Looked) -> Iterator[Finding]:
    """Experts that the calibration text never reaches."""
    for each in looked.session.layers.activations:
        if each is None or not each.expert_tokens or each.layer != each.shared_with:
            continue
        unseen = [expert for expert, tokens in enumerate(each.expert_tokens) if not tokens]
        if unseen:
            few = ", ".join(map(str, unseen[:8])) + (", …" if len(unseen) > 8 else "")
            yield Finding(
                id="unseen-expert",
                severity="warning",
                layer=each.layer,
                sentence=f"{len(unseen)} of {len(each.expert_tokens)} experts got no token of the "
                f"calibration text ({few}): nothing is known of them; use more or other text",
                evidence={"unseen": len(unseen), "experts": len(each.expert_tokens)},
            )


def few_tokens(looked: Looked) -> Iterator[Finding]:
    """Calibration text with fewer tokens than a layer has inputs, or of few windows."""
    session, limits = looked.session, looked.limits
    layers, calibration = session.layers, session.calibration
    if calibration is not None and calibration.windows < limits.few_windows:
        yield Finding(
            id="few-windows",
            severity="note",
            sentence=f"the calibration text has {calibration.windows} windows: a document or two "
            "decide what is calibrated; give more with --calib",
            evidence={"windows": calibration.windows},
        )
    if calibration is not None:
        wide = [
            shape[-1]
            for role, shape in zip(layers.roles, layers.shapes, strict=True)
            if role not in OUTSIDE and calibration.tokens < limits.tokens_per_channel * shape[-1]
        ]
        if wide:
            yield Finding(
                id="few-tokens",
                severity="note",
                sentence=f"{calibration.tokens:,} tokens of calibration text for up to "
                f"{max(wide):,} inputs, in {len(wide):,} layers more inputs than tokens: the "
                "Hessian of +gptq is singular there, and damping decides",
                evidence={"tokens": calibration.tokens, "channels": max(wide)},
            )
    yield from _thin_experts(looked)


def _thin_experts(looked: Looked) -> Iterator[Finding]:
    """Experts with fewer tokens than inputs."""
    for each in looked.session.layers.activations:
        if each is None or not each.expert_tokens or each.layer != each.shared_with:
            continue
        least = looked.limits.tokens_per_channel * each.input.channels
        few = [expert for expert, tokens in enumerate(each.expert_tokens) if 0 < tokens < least]
        if few:
            worst = min(few, key=each.expert_tokens.__getitem__)
            yield Finding(
                id="thin-experts",
                severity="note",
                layer=each.layer,
                sentence=f"{len(few)} of {len(each.expert_tokens)} experts got fewer tokens than "
                f"their {each.input.channels:,} inputs, expert {worst} the fewest, "
                f"{each.expert_tokens[worst]:,}: what is calibrated on them is doubtful",
                evidence={"experts": len(few), "tokens": each.expert_tokens[worst]},
            )
