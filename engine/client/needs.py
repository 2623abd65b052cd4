"""What a command's job needs, asked before an engine is there."""

from __future__ import annotations

import importlib

from engine import protocol as p


def needs_model(command: p.AnyCommand) -> bool:
    """Whether the command's job needs the model, or the files of the checkpoint at most.

    Raises:
        UsageError: no such command is declared.
    """
    # By name, so that importing this module never imports the engine.
    declared = importlib.import_module("engine.service.commands").spec_of(command)
    return bool(declared.needs_of(command) == "model")
