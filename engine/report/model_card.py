"""The model card of a checkpoint that was written: recipe, figures, protocol, command."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.report import wording as n
from engine.report.characters import printable
from engine.report.recipe_text import recipe_file
from engine.report.reproduce import command
from engine.report.tables.layout import escaped, markdown, paragraphs
from engine.session import Session, recipe_hash

HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""The name of a repository."""


def model_card(session: Session, recipe: Mapping[str, str], asked: p.Export) -> str:
    """A model card as Markdown.

    Args:
        session: of the checkpoint that the recipe is for.
        recipe: formats of the layers that are not kept.
        asked: the command that writes it.
    """
    read = session.checkpoint
    name = (read.name if read is not None else session.source).rstrip("/").rsplit("/", 1)[-1]
    size = session.size_of(recipe)
    version = session.versions.get("qtui", "")
    many = f"{len(recipe):,} of {n.counted(len(session.layers.names), 'layer')}"
    said = (
        f"{many} of {name} quantised by qtui {version}: {size.bits_per_weight:.4g} bits per weight "
        f"of the blocks, {n.size(size.bytes)}."
    )
    reproduce = command(
        _public(session.settings),
        _without_folders(session.source),
        "export",
        ["--recipe", "recipe.toml", "--to", asked.to, "-o", "PATH"],
    )
    return _front(session.source) + paragraphs(
        f"# {escaped(printable(name))}, quantised",
        escaped(printable(said)),
        "## Recipe",
        markdown(("format", "layers", "weights", "size"), _formats(session, recipe)),
        "As a file, `recipe.toml`:",
        _code(recipe_file(session, recipe, (), name)),
        "## Figures",
        _figures(session, recipe),
        "## Protocol",
        markdown(("", ""), _protocol(session)),
        "## Command",
        _code(reproduce),
    )


def _public(settings: p.Settings) -> p.Settings:
    """Settings whose files are named without their folders: a card is read by strangers."""
    named = {
        name: value if value is None else _without_folders(value)
        for name in ("text", "calib", "imatrix")
        if isinstance(value := getattr(settings, name), str | None)
    }
    return msgspec.structs.replace(settings, **named)


def _without_folders(source: str) -> str:
    """The last name of a path on this machine; a hub id or another name as it is.

    A folder goes before a repository of the same name, as when a model is opened. What follows the
    path of a dataset, its column, stays.
    """
    path = source.rstrip("/")
    if path.startswith(("/", "~", "./", "../")) or Path(source).exists() or path.count("/") > 1:
        return path.rsplit("/", 1)[-1]
    return source


def _front(source: str) -> str:
    """What a hub reads: the model that this one was made from, where that is one of a hub."""
    # A folder goes before a repository of the same name, as when a model is opened.
    of_a_hub = HUB.fullmatch(source) and not Path(source).exists()
    based = f"base_model: {source}\n" if of_a_hub else ""
    return f"---\n{based}tags:\n- quantized\n---\n"


def _code(text: str) -> str:
    """Lines that Markdown shows as they are, whatever is in them."""
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _formats(session: Session, recipe: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    layers, weights, bits = Counter[str](), Counter[str](), Counter[str]()
    for row, name in enumerate(session.layers.names):
        held = recipe.get(name, session.kept(row))
        layers[held] += 1
        weights[held] += math.prod(session.layers.shapes[row])
        bits[held] += session.bits_in(row, recipe.get(name, ""))
    return [
        (held, f"{count:,}", n.count(weights[held]), n.size(bits[held] / 8))
        for held, count in layers.most_common()
    ]


def _figures(session: Session, recipe: Mapping[str, str]) -> str:
    """What was measured of the recipe, beside the model as stored."""
    score, base = session.scores.get(recipe_hash(recipe)), session.baseline
    if score is None or not score.done:
        return "Not measured before it was written: `qtui eval` with the recipe measures them."
    half = session.interval_factor * score.kl_se
    error = f" ± {n.short(1000 * half)}" if math.isfinite(half) else ""
    stored = n.perplexity(base.ppl) if base is not None else ""
    low, high = n.perplexity(score.ppl_low), n.perplexity(score.ppl_high)
    rows = [
        ("perplexity", stored, f"{n.perplexity(score.ppl)} ({low} to {high})"),
        ("KL·10³, nats per token", "0", n.short(1000 * score.kl) + error),
        ("same most likely token", "100%", f"{score.top1:.1%}"),
    ]
    return markdown(("", "as stored", "this one"), rows)


def _protocol(session: Session) -> list[tuple[str, str]]:
    read, ready, calibration = session.checkpoint, session.measured_with, session.calibration
    found = []
    if read is not None:
        found += [("checkpoint", read.name), ("fingerprint", read.fingerprint)]
    if ready is not None:
        how = ready.protocol
        found += [
            ("text", f"{how.text_read}, {how.tokens:,} tokens, SHA-256 {how.text_sha256[:16]}"),
            ("windows", f"{how.windows} of {how.seq_len} tokens, {how.stride} targets of each"),
            ("arithmetic", f"{how.dtype} on {how.device}, seed {how.seed}"),
            ("intervals", f"{how.interval:.0%}"),
        ]
    if calibration is not None:
        cut = f"{calibration.windows} windows of {calibration.seq_len} tokens"
        found.append(("calibration", f"{calibration.text}, {cut}, seed {calibration.seed}"))
    found.append(("versions", ", ".join(f"{k} {v}" for k, v in sorted(session.versions.items()))))
    return found
