"""Memory that runs out, on every path: told with exit status 4, and the engine goes on.

On a GPU it truly runs out: the allocator is held to what is in use, and a little more for every
further try. On a processor, where running out ends the process, the model's forward raises what
the allocator would.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from engine import protocol as p
from engine.client import InProcess, in_process
from tests.drive import ended, until
from tests.gpu.models import settings, tiny_checkpoint
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from engine.workspace import Loaded

JOBS: dict[str, tuple[p.Command, str]] = {
    "sweep": (p.Sweep(("int4-g32",), exact="top:2"), "sweep"),
    "restore sweep": (p.Sweep(("int4-g32",), direction="restore"), "sweep"),
    "recipe": (p.Evaluate(format="int4-g32"), "evaluate"),
    "calibrated recipe": (p.Evaluate(format="int4-g32+gptq"), "evaluate"),
}
LITTLE = (0, 1 << 20, 8 << 20, 64 << 20)
"""Bytes that a job may take in addition, so that it ends at different places."""


def run(options: Options, figures: Recorder) -> None:
    """Each job without memory, then once more with it: as if nothing had happened."""
    for name, (command, kind) in JOBS.items():
        expected = _figure(_undisturbed(options, command, kind))
        source = tiny_checkpoint(options, "llama")
        client = in_process(str(source))
        try:
            client.send(p.Open(str(source), _settings(options)))
            until(client, lambda event: isinstance(event, p.ModelReady))
            told = 0
            for little in LITTLE if options.device != "cpu" else LITTLE[:1]:
                with cramped(_loaded(client), little):
                    client.send(command)
                    last = until(client, ended(kind))[-1]
                assert isinstance(last, p.JobEnded)
                if last.status != "failed":
                    break  # it was enough
                told += 1
                note = last.message[:160]
                figures.same(f"{name}: exit status with {little >> 20} MiB more",
                             last.exit_code, 4, note=note)  # fmt: skip
            figures.most(f"{name}: never out of memory", float(told == 0), 0)
            events = _run(client, command, kind)
            figures.same(f"{name}: afterwards", _figure(events), expected,
                         0.0 if options.device == "cpu" else 1e-4)  # fmt: skip
            _loaded(client).assert_at_rest()
        finally:
            client.close()
    _while_loading(options, figures)


def _settings(options: Options) -> p.Settings:
    given: dict[str, Any] = {} if options.tiny else {"tokens": 8192, "seq_len": 128}
    return settings(options, options.device, batch_tokens=4096, fresh=True, **given)


def _loaded(client: InProcess) -> Loaded:
    from engine.workspace import Loaded

    loaded: Loaded = client._engine._workspace.need(Loaded)
    return loaded


def _run(client: InProcess, command: p.Command, kind: str) -> list[p.AnyEvent]:
    client.send(command)
    events = until(client, ended(kind))
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "done", last.message
    return events


def _undisturbed(options: Options, command: p.Command, kind: str) -> list[p.AnyEvent]:
    source = tiny_checkpoint(options, "llama")
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), _settings(options)))
        return _run(client, command, kind)
    finally:
        client.close()


def _figure(events: list[p.AnyEvent]) -> float:
    """The sum of all KL that a job found, so that none may be missing."""
    found = {}
    for event in events:
        if isinstance(event, p.Learned):
            for key, fact in zip(event.keys, event.facts, strict=True):
                if isinstance(fact, p.Sensitivity | p.RecipeScore | p.Estimate):
                    found[key] = fact.kl
    return sum(found.values())


@contextlib.contextmanager
def cramped(loaded: Loaded, little: int) -> Iterator[None]:
    """Inside, no more than ``little`` bytes can be allocated in addition."""
    import torch

    network = loaded.network
    if network.device.type != "cuda":
        with _refusing(network):
            yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(network.device).total_memory
    share = (torch.cuda.memory_reserved(network.device) + little) / total
    torch.cuda.set_per_process_memory_fraction(share, network.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, network.device)


@contextlib.contextmanager
def _refusing(network: Any) -> Iterator[None]:
    import torch

    run = type(network).run

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 1.00 GiB (pretended, on a processor)")

    type(network).run = refused
    try:
        yield
    finally:
        type(network).run = run


def _while_loading(options: Options, figures: Recorder) -> None:
    """Loading where the model does not fit: refused before, or told when it happens."""
    if options.device == "cpu":
        return
    import torch

    from engine.errors import OutOfMemoryError
    from engine.model.load import choose_device, load_network

    device = choose_device(options.device)[0]
    total = torch.cuda.get_device_properties(device).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((reserved + 1) / total, device)
    code, note = 0, "it loaded"
    filling: list[torch.Tensor] = []  # what torch holds for small tensors, or it would fit in there
    with contextlib.suppress(torch.OutOfMemoryError):
        while len(filling) < 100_000:
            filling.append(torch.empty(4096, dtype=torch.uint8, device=device))
    try:
        load_network(tiny_checkpoint(options, "qwen3_moe"), device=device, dtype="fp32")
    except OutOfMemoryError as error:
        code, note = error.exit_code, str(error)[:160]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        filling.clear()
    figures.same("loading: exit status", code, 4, note=note)
