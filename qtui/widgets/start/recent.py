"""Past sessions as rows, and a summary of an inspected checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len

from engine.opening.inspection import Inspection
from engine.report import wording as n
from engine.store.past_sessions import PastSession
from qtui.views.completion import Completion
from qtui.views.text import Glyphs, ago, fit, printable
from qtui.widgets.line import Words

DEMO = "demo"
"""What the bundled checkpoint is opened by."""
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def kind(architecture: str, parameters: int) -> str:
    """``Llama 1.1B``."""
    name = printable(architecture)
    for tail in ("ForCausalLM", "LMHeadModel"):
        name = name.removesuffix(tail)
    return f"{name} {n.count(parameters) if parameters else ''}".strip()


def known(past: PastSession, glyphs: Glyphs, width: int) -> str:
    """What a session knows, in so many cells: a sentence, or what of it fits."""
    pieces: list[tuple[int, str, str]] = []  # how much it matters, in full, in short
    if past.layers and past.measured:
        share = f"{past.measured}/{past.layers}"
        pieces.append((1, f"{share} layers measured", share))
    elif past.layers:
        pieces.append((1, f"{past.layers} layers", f"{past.layers} layers"))
    if past.changed:
        pieces.append((3, f"{past.changed} changed", f"{past.changed} changed"))
    if not math.isnan(past.ppl_reference):
        score = n.perplexity(past.ppl_reference)
        if not math.isnan(past.ppl_recipe) and past.changed:
            score += f" {glyphs.arrow} {n.perplexity(past.ppl_recipe)}"
        pieces.append((0, f"PPL {score}", f"PPL {score}"))
    if not math.isnan(past.bits_per_weight) and past.changed:
        bits = f"{past.bits_per_weight:.2f} bits"
        pieces.append((2, bits, bits))
    if not pieces:
        return fit("nothing measured yet", width, glyphs).rstrip()
    sentence = ", ".join(full for _, full, _ in pieces)
    if cell_len(sentence) <= width:
        return sentence
    kept: list[int] = []
    for place in sorted(range(len(pieces)), key=lambda place: pieces[place][0]):
        trial = sorted([*kept, place])
        if cell_len(", ".join(pieces[each][2] for each in trial)) <= width:
            kept = trial
    return ", ".join(pieces[place][2] for place in kept)


class Columns(NamedTuple):
    """Cells of a row's columns, and whether times are written short."""

    name: int
    kind: int
    when: int
    known: int
    short: bool


def columns(width: int) -> Columns:
    """The columns for so many cells, one between each two of them."""
    if width >= 110:
        return Columns(34, 18, 13, width - 70, False)
    name = max(14, min(30, width - 53))
    return Columns(name, 12, 8, width - name - 25, True)


def row(past: PastSession, now: float, glyphs: Glyphs, width: int) -> Words:
    """A session in a line."""
    at = columns(width)
    when = "running" if past.running else ago(now - past.when, short=at.short)
    what = printable(past.problem) if past.problem else known(past, glyphs, at.known)
    return [
        (f"{glyphs.changed if past.running else ' '} ", "$success"),
        (fit(printable(past.checkpoint or past.name), at.name, glyphs) + " ", "bold"),
        (fit(kind(past.architecture, past.parameters), at.kind, glyphs) + " ", ""),
        (fit(when, at.when, glyphs) + " ", "$success" if past.running else "$dim"),
        (fit(what, at.known, glyphs), "$warning" if past.problem else "$dim"),
    ]


def headline(past: Sequence[PastSession], glyphs: Glyphs) -> Words:
    """How many sessions there are, or what to do where there is none."""
    number, running = len(past), sum(each.running for each in past)
    if not number:
        return [
            ("No sessions yet: ", "bold"),
            ("enter opens the demo, or type a path or hub id", ""),
        ]
    words: Words = [(f"{number} session{'s' if number > 1 else ''}, newest first", "$dim")]
    if running:
        words.append((f"   {glyphs.changed} {running} running", "$success"))
    return words


def sources(past: Sequence[PastSession], now: float) -> list[Completion]:
    """What was open before, and the demo, as a line that is typed could name them."""
    known = [
        Completion(each.source, f"open {ago(now - each.when)}") for each in past if each.source
    ]
    if DEMO not in {each.source for each in past}:
        known.append(Completion(DEMO, "bundled, no download"))
    return known


def demo_row(glyphs: Glyphs, width: int) -> Words:
    """The bundled checkpoint, where it was never opened."""
    return [
        ("  ", ""),
        (fit("demo", columns(width).name, glyphs) + " ", "bold"),
        ("bundled: no download, no GPU", "$dim"),
    ]


def sentence(seen: Inspection) -> str:
    """``Llama 1.1B, 155 layers, bf16, 2.2 GB``, as far as it is known."""
    dtype = printable(seen.dtype)
    parts = [
        kind(seen.architecture, seen.parameters),
        f"{seen.layers} layers" if seen.layers else "",
        DTYPES.get(dtype, dtype),
        n.size(seen.bytes) if seen.bytes else "",
    ]
    return ", ".join(part for part in parts if part)
