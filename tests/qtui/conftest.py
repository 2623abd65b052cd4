"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qtui import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command_line(*given: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(given)
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, out, err

    return command_line


@pytest.fixture(autouse=True)
def judged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts and findings follow every event: no picture depends on a clock."""
    from qtui.screens.diagnosis import screen
    from qtui.widgets.frame import verdict

    for module in (verdict, screen):
        monkeypatch.setattr(module, "LEAST", 0.0)
        monkeypatch.setattr(module, "REST", 0.0)
