"""The base of every Struct on the wire or in a journal."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Frozen, tagged with its class name; an unknown field is an error."""
