"""HQQ: ``P.W_q`` with ``P.scale`` and ``P.zero``, several codes per byte. Recognised, not read.

Its own loader evaluates bytes of the file as Python; it is never called.
"""

from __future__ import annotations

import re

from engine.checkpoint.quantised.reader import Reader

_CODES = re.compile(r"\.W_q$")

READER = Reader(name="hqq", recognises=lambda _, tensor: _CODES.search(tensor.name) is not None)
