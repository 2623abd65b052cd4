"""EXL3: ``P.trellis``, a path through a codebook for each tile. Recognised, not read."""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_CODES = re.compile(r"\.trellis$")

READER = Reader(name="exl3", recognises=lambda _, tensor: _CODES.search(tensor.name) is not None)
