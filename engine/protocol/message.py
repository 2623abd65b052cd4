"""The base of every Struct that crosses the wire or is kept in a journal."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Frozen, tagged with its own name; a field that is not known is an error."""
