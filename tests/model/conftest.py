"""Tiny checkpoints and the networks loaded from them, made once a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.model.load import load_network
from engine.model.network import Network
from tests import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(arch: str) -> Path:
        if arch not in made:
            made[arch] = tiny.build(arch, tmp_path_factory.mktemp("tiny") / arch)
        return made[arch]

    return of


@pytest.fixture(scope="session")
def loaded(folder: Callable[[str], Path]) -> Callable[[str], Network]:
    made: dict[str, Network] = {}

    def of(arch: str) -> Network:
        if arch not in made:
            made[arch] = load_network(folder(arch), device="cpu")
        return made[arch]

    return of


@pytest.fixture
def network(request: pytest.FixtureRequest, loaded: Callable[[str], Network]) -> Iterator[Network]:
    """The network of ``request.param``, which every test must leave at rest."""
    found = loaded(request.param)
    yield found
    found.should_stop = None
    found.assert_at_rest()
