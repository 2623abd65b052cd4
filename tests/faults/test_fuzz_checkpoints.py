"""Any broken checkpoint is refused or read, soon, and nothing else happens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import fuzz_bases, fuzzing
from tests.faults.table import put

SHORT, LONG = 3_000, 1_000_000


@settings(
    max_examples=SHORT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**63))
def test_a_broken_checkpoint_is_refused_or_read(seed: int, tmp_path: Path) -> None:
    # By a seed: a change for each number that is drawn would take ten times as long.
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    assert not fuzzing.fault(folder, random.Random(seed))


@pytest.mark.parametrize("name", fuzz_bases.SOUND)
def test_each_checkpoint_is_sound_before_it_is_broken(name: str, tmp_path: Path) -> None:
    """Or the changes would all be refused for the same reason."""

    class Unchanged(random.Random):
        def choice(self, seq: Any) -> Any:
            return name if seq is fuzzing.NAMES else super().choice(seq)

        def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
            return 6 if stop == 6 else 1  # a change that there is not

    folder = tmp_path / "model"
    folder.mkdir()
    fuzzing.write(folder, Unchanged(0))
    fuzzing.open_and_read(folder)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_broken_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for seed in range(LONG):
        assert not fuzzing.fault(folder, random.Random(seed)), f"seed {seed}"
    put("a broken checkpoint", f"{LONG:,}: 0")
