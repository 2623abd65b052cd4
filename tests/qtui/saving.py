"""A view of a session in which everything happened: measured, estimated, changed, refused."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from engine import protocol as p
from engine.session import Session, apply
from qtui.saved.view import View
from tests.qtui import replay as r

LAYER = "model.layers.0.mlp.down_proj"
GUESSED = "model.layers.1.mlp.down_proj"
EXPERTS = "model.layers.1.mlp.experts"
BROKEN = "model.layers.0.self_attn.q_proj"


def session() -> Session:
    """A sweep but for one layer, which is estimated; two layers changed; one with NaN figures."""
    found = Session()
    for event in (*r.opening(), *r.triaged(), *r.swept()):
        apply(found, event)
    rows = {name: row for row, name in enumerate(found.layers.names)}
    found.effects.measured[r.EFFECTS][rows[GUESSED]] = None
    broken = p.Sensitivity(
        layer=BROKEN, format=r.FORMAT, kl=math.nan, kl_se=math.inf, dnll=-0.25, dnll_se=1e-9,
        dppl=math.inf, dppl_low=-math.inf, dppl_high=math.nan, tokens=16384,
    )  # fmt: skip
    guess = p.Estimate(
        layer=GUESSED, format=r.FORMAT, kl=0.1 + 0.2, kl_se=1e-17, dnll=0.003, dnll_se=0.0005,
        tokens=4096,
    )  # fmt: skip
    apply(found, p.Learned(("x", "y"), (broken, guess)))
    apply(found, r.changed(found, [LAYER], r.FORMAT))
    apply(found, r.changed(found, ["lm_head"], "int8"))
    apply(found, r.histogram(LAYER))
    apply(found, p.Fallback(layer=LAYER, format="q4_k", why='768 is not, a "multiple" of #256'))
    return found


def view(found: Session | None = None, **given: object) -> View:
    """Rows as if sorted backwards, the cursor on a layer that has everything."""
    found = found or session()
    rows = tuple(reversed(range(len(found.layers.names))))
    chosen = {"rows": rows, "layer": LAYER, "format": r.FORMAT, **given}
    return View(session=found, source="demo", **chosen)  # type: ignore[arg-type]


def lines_of_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The heading, and the rows as the standard library reads them."""
    text = path.read_text()
    heading = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    body = text.splitlines(keepends=True)[len(heading) :]
    return heading, list(csv.DictReader(io.StringIO("".join(body))))
