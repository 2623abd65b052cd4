"""quanto: ``P.weight._data`` with ``P.weight._scale``. Recognised, not read."""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_CODES = re.compile(r"\.weight\._data(\._data)?$")

READER = Reader(name="quanto", recognises=lambda _, tensor: _CODES.search(tensor.name) is not None)
