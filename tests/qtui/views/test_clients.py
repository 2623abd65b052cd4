"""Who uses an engine, in a sentence."""

from __future__ import annotations

import pytest

from engine import protocol as p
from qtui.views.clients import used_by

EVAL = "qtui eval"


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (p.Clients(), ""),
        (p.Clients(terminals=1), "another terminal uses this engine too"),
        (p.Clients(terminals=2), "2 other terminals use this engine too"),
        (p.Clients(commands=(EVAL,)), "`qtui eval` uses this engine too"),
        (
            p.Clients(terminals=1, commands=(EVAL, EVAL, "qtui plan")),
            "another terminal, `qtui eval` (2) and `qtui plan` use this engine too",
        ),
        (p.Clients(commands=("\x1b[2J",)), "`\\x1b[2J` uses this engine too"),
    ],
)
def test_who_else_uses_it(others: p.Clients, said: str) -> None:
    assert used_by(others, of_run=False) == said


def test_who_runs_it_comes_first() -> None:
    assert "ends with it" in used_by(p.Clients(terminals=1), of_run=True)
