"""Commands and frames share one tag on the wire."""

from __future__ import annotations

import typing

import msgspec
import pytest

from engine import protocol as p
from engine.protocol import commands, frames


def test_no_command_takes_the_name_of_a_frame() -> None:
    structs = [
        each
        for each in vars(frames).values()
        if isinstance(each, type)
        and issubclass(each, msgspec.Struct)
        and each.__module__ == frames.__name__
    ]
    names = {each.__name__ for each in structs}
    assert names == commands.RESERVED
    for name in names:
        kind = typing.cast(
            "type[p.Command]",
            msgspec.defstruct(name, [("n", int, 0)], bases=(p.Command,), frozen=True),
        )
        with pytest.raises(ValueError, match="name of a frame"):
            p.register_command(kind)
        assert name not in p.command_types()
