"""What is imported when: the command line answers before any tensor library is touched."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from engine.export import targets

HEAVY = {"torch", "transformers", "datasets", "numpy", "scipy", "safetensors", "pandas"}


def imported_by(program: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a program ran."""
    told = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return {name.split(".")[0] for name in told.stderr.splitlines()[-1].split()}


def test_the_command_line_imports_no_tensor_library_and_no_terminal_library() -> None:
    program = (
        "from qtui.cli.command_line import command_line\n"
        "from qtui.cli.commands import all_commands\n"
        "command_line(all_commands())"
    )
    assert not imported_by(program) & (HEAVY | {"textual", "plotext"})


def test_a_command_imports_no_other_command() -> None:
    program = (
        "import sys, qtui.cli\n"
        "from qtui.cli.command_line import command_line; from qtui.cli.commands import OPEN\n"
        "command_line([OPEN])\n"
        "loaded = {name for name in sys.modules if name.startswith(('qtui.cli.', 'engine.'))}\n"
        "assert not loaded & {'qtui.cli.sweep', 'qtui.cli.headless', 'engine.report.documents'}"
    )
    assert not imported_by(program) & (HEAVY | {"textual", "plotext"})


def test_the_doctor_imports_no_tensor_library() -> None:
    program = "from qtui.cli.installation import examine, report_text\nreport_text(examine())"
    # Themes and keys are checked with Textual; without it the rest is still told.
    assert not imported_by(program) & (HEAVY | {"plotext"})
    assert "textual" not in imported_by("import qtui.cli.doctor")


SHARED = (
    *("protocol", "session", "client", "profiles", "errors", "report.documents"),
    *("store.journal", "store.past_sessions", "recipes.changes", "recipes.file"),
    *("formats.grammar", "formats.catalogue", "formats.storage", "formats.completion"),
)


@pytest.mark.parametrize("module", SHARED)
def test_what_both_sides_share_imports_no_tensor_library(module: str) -> None:
    assert not imported_by(f"import engine.{module}") & (HEAVY | {"textual", "qtui"})


def test_the_interface_imports_no_tensor_library() -> None:
    assert not imported_by("import qtui.app") & HEAVY


def test_inspecting_a_checkpoint_imports_no_tensor_library() -> None:
    program = (
        "from engine.opening.inspect import inspect_headers\n"
        "assert inspect_headers('demo').layers == 37"
    )
    assert not imported_by(program) & HEAVY


def test_completing_a_format_and_listing_sessions_imports_no_tensor_library() -> None:
    program = (
        "from engine.formats.completion import complete_format, explain_format\n"
        "from engine.opening.hub import hub_cache\n"
        "from engine.store.past_sessions import past_sessions\n"
        "complete_format('int4'), explain_format('int4'), past_sessions(), hub_cache()"
    )
    assert not imported_by(program) & HEAVY


DECLARED = {
    *("", ".target", ".targets", ".rules", ".refusal"),
    *(f".targets.{module.name}" for module in pkgutil.iter_modules(targets.__path__)),
    *(".compressed", ".compressed.expressed", ".gptq", ".gptq.expressed", ".compressed.form"),
    *(".gguf", ".gguf.expressed"),
}
"""What says, in text, which targets an export has and what they express."""


def test_to_know_of_an_export_imports_no_export_and_no_tensor_library() -> None:
    program = (
        "import qtui.cli.export, engine.report.documents, qtui.cli.headless, sys\n"
        "parts = {name[13:] for name in sys.modules if name.startswith('engine.export')}\n"
        f"assert parts <= {DECLARED}, parts"
    )
    assert not imported_by(program) & HEAVY


def test_an_engine_that_waits_has_not_imported_the_export() -> None:
    program = (
        "import engine.service.engine, sys\n"
        "assert not any(name.startswith('engine.export') for name in sys.modules)"
    )
    assert not imported_by(program) & {"transformers", "datasets"}
