"""What is registered in a test is gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import qtui.cli.export  # noqa: F401 - its help lists the targets there are when it is imported
from engine import plugins
from engine.checkpoint.quantised import reader
from engine.export import target
from engine.export.compressed import form
from engine.formats import catalogue, family
from engine.protocol import commands as command_types
from engine.report.figures import registry as figures
from engine.service import commands as jobs
from qtui.cli import commands
from qtui.screens import registry as screens

REGISTRIES = (
    (reader, "_READERS"),
    (target, "_TARGETS"),
    (form, "_FORMS"),
    (family, "_FAMILIES"),
    (catalogue._FORMATS, "found"),
    (command_types, "_types"),
    (figures, "_FIGURES"),
    (jobs, "_specs"),
    (commands, "_registered"),
)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries that are as before once the test has ended."""
    reader.readers(), target.targets(), family.families(), jobs.load()
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_loaded", set(plugins._loaded))
        for owner, name in REGISTRIES:
            patch.setattr(owner, name, dict(getattr(owner, name)))
        patch.setattr(screens, "_registered", list(screens._registered))
        yield
    figures._changed()


@pytest.fixture
def example(apart: None) -> None:
    """The example package, loaded."""
    plugins.load_plugin("tests.plugins.example:register")
