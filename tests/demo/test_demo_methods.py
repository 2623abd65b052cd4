"""What methods are worth on the bundled checkpoint, scored by the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import protocol as p
from engine.client import Client, in_process
from tests.drive import ended, facts, until

TEXT = {"tokens": 1024, "calib_tokens": 2048, "seq_len": 256, "batch_tokens": 512}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        client = in_process("demo")
        client.send(p.Open("demo", p.Settings(**TEXT)))  # type: ignore[arg-type]
        until(client, ended("open"))
        yield client
        client.close()


def kl(client: Client, text: str) -> float:
    client.send(p.Evaluate(format=text))
    events = until(client, ended("evaluate"))
    found = facts(events, p.RecipeScore)[-1]
    assert isinstance(found, p.RecipeScore)
    return found.kl


@pytest.mark.slow
@pytest.mark.parametrize("base", ["int3-g128", "int4-channel"])
def test_gptq_and_awq_lie_between_the_reference_and_rounding(base: str, client: Client) -> None:
    rounded = kl(client, base)
    for method in ("gptq", "awq"):
        assert 0 < kl(client, f"{base}+{method}") < rounded, method


@pytest.mark.slow
def test_finer_groups_are_better(client: Client) -> None:
    found = [kl(client, f"int3-{share}") for share in ("g32", "g64", "g128", "channel")]
    assert found == sorted(found)
    assert found[0] > 0
