"""torchao: ``P._weight_qdata`` with ``P._weight_scale``. Recognised, not read."""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_CODES = re.compile(r"\._weight_qdata$")

READER = Reader(name="torchao", recognises=lambda _, tensor: _CODES.search(tensor.name) is not None)
