"""Advice for the layer under the cursor, which a key does not wait for in large models."""

from __future__ import annotations

import time

from engine.diagnosis.advice import Advice, Adviser
from engine.report.figures import Context
from engine.session import Session

REST = 100.0
"""How many times longer than looking at all layers took, advice is given by that look."""
LEAST = 2.0
"""Seconds that it is given by the same look, at least, if that took longer than `QUICK`."""
QUICK = 0.002
"""Seconds of a look that is done again at every change."""


class RestedAdvice:
    """Advises layers by a look at all of them, which is repeated only now and then.

    With results coming in, every one would change the sum of all damage a little.
    """

    def __init__(self) -> None:
        self._adviser: Adviser | None = None
        self._of: tuple[Session, str, str] | None = None
        self._seq = -1
        self._until = 0.0

    def of(self, context: Context, row: int) -> Advice | None:
        """The advice for a row, by the effects that are shown; None for those of restore."""
        session, key, serving = context.session, context.key, context.serving
        to = serving.to if serving is not None else ""
        if key.direction != "degrade" or not key.format:
            return None
        now = time.monotonic()
        same = self._of is not None and self._of[0] is session and self._of[1:] == (key.format, to)
        if self._adviser is None or not same or (session.seq != self._seq and now >= self._until):
            self._adviser = Adviser(session, key.format, serving)
            self._of = session, key.format, to
            self._seq = session.seq
            found = self._adviser.advice(row)
            took = time.monotonic() - now
            self._until = now + (max(LEAST, REST * took) if took > QUICK else 0.0)
            return found
        return self._adviser.advice(row)
