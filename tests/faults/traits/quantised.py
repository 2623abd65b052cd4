"""Quantised weights of every layout that is read, as their tools write them but for one thing.

A scale that is not a number is a finding of most layouts: the command says how many weights are
not. fp8 with one scale for a whole weight, or a block, is refused.
"""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.quantised.fixtures import cases, tensors, write_files
from tests.checkpoint.quantised.hostile import TRAITS, Spoil, of_every_layout
from tests.faults.traits.trait import trait


def _write(folder: Path, tool: str, case: str, spoil: Spoil) -> None:
    """Replace a folder's checkpoint by a case of a tool that was spoilt."""
    for file in folder.iterdir():
        file.unlink()
    found = cases(tool)[case]
    stored, config = tensors(found), dict(found["config"])
    more = config.pop("", {})
    spoil(stored, config)
    write_files(folder, stored, config or None, found.get("metadata"), **more)


def _spoilt(name: str, tool: str, case: str, spoil: Spoil, told: str, prints: str = "") -> None:
    @trait(f"{tool} {case}: {name}", told=told, prints=prints)
    def build(folder: Path) -> None:
        _write(folder, tool, case, spoil)


for _number, ((_tool, _case), _how, _told) in enumerate(TRAITS):
    _spoilt(f"{_number}, {_told}", _tool, _case, _how, _told)
REFUSED = ("fp8", "mxfp8")
for _name, _of, _how in of_every_layout():
    _told, _prints = "model.layers", ""
    if "not a number" in _name and _of.case in REFUSED:
        _told = "not finite"
    elif "not a number" in _name:
        _told, _prints = "", "NaN"
    _spoilt(_name, _of.tool, _of.case, _how, _told, _prints)
