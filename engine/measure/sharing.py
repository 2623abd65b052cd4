"""The crew that shares a job on a loaded model: as many workers as the settings ask for.

Every worker opens the same files with the same settings, on a device of the same kind, and what it
says of them is compared with what the engine has: a fact's key names all of that, so a figure does
not depend on who measured it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.model.memory import memory_free
from engine.model.streaming import RESIDENT
from engine.service.commands import spec_of
from engine.service.jobs import OpenSpec
from engine.service.process import is_own_process
from engine.workers.asked import beside, parse_workers
from engine.workers.cluster import Cluster, Place
from engine.workers.crew import WAIT, Crew
from engine.workers.local import LocalWorker
from engine.workers.worker import Worker
from engine.workspace import Loaded


def joined(loaded: Loaded, held: ExitStack) -> Generator[None, None, Cluster | None]:
    """The cluster that the settings ask for; more urgent jobs may run while it is joined.

    Args:
        loaded: the model.
        held: closes it in the end.

    Raises:
        UsageError: it cannot be joined.
    """
    address = parse_workers(loaded.settings.workers).cluster
    if not address:
        return None
    cluster = held.enter_context(closing(Cluster(address)))
    while not cluster.join(WAIT):
        yield None
    return cluster


@contextmanager
def crew_of(
    loaded: Loaded, cluster: Cluster | None = None, *, needed: bool = True
) -> Iterator[Crew]:
    """The workers that the settings ask for, started at once and ended with the job.

    Args:
        loaded: the model.
        cluster: that the settings ask for, joined.
        needed: whether there is something to measure; without it none are started.

    Raises:
        UsageError: they cannot be had.
    """
    import torch

    device = str(loaded.network.device)
    gpus = torch.cuda.device_count() if device.startswith("cuda") else 0
    asked = parse_workers(loaded.settings.workers)
    devices = beside(asked, device, gpus) if needed else ()
    threads = None
    if device == "cpu":
        # An engine that has the process to itself has divided its own already.
        processes = 1 if is_own_process() else len(devices) + 1
        threads = max(1, torch.get_num_threads() // processes)
    workers: list[Worker] = [
        LocalWorker(f"{number} on {each}", each, threads) for number, each in enumerate(devices, 1)
    ]
    opening = p.Open(_source(loaded), _settings(loaded, len(devices)), take_up=False)
    if cluster is not None:
        workers += hosted(cluster, threads, len(workers))
        if not workers:
            raise UsageError(_nobody(cluster, threads))
    with closing(Crew(workers, opening, lambda events: why_not(loaded, events))) as crew:
        yield crew


def hosted(cluster: Cluster, threads: int | None, others: int) -> list[Worker]:
    """Workers on all nodes of a cluster but the engine's: one on every GPU, or one on each node.

    Args:
        cluster: that this host has joined.
        threads: of the engine, if it runs on a processor: all have as many, also on a node with
            fewer processors, so that figures are equal to the last digit.
        others: workers on this machine, numbered before.
    """
    gpu = threads is None
    nodes = [
        node for node in cluster.nodes for _ in range(node.gpus if gpu else min(1, node.processors))
    ]
    return [
        cluster.worker(
            f"{number} on {node.host}",
            "cuda:0" if gpu else "cpu",  # Ray shows an actor its own GPU only
            Place(number, node.id, gpu, threads, min(threads or 0, node.processors)),
        )
        for number, node in enumerate(nodes, others + 1)
    ]


def _nobody(cluster: Cluster, threads: int | None) -> str:
    wanted = "with a GPU" if threads is None else "with a processor for it"
    return (
        f"{cluster.name} has no host beside this one {wanted}: on another "
        "host run `ray start --address=HOST:PORT` with the address of the cluster's head"
    )


def _source(loaded: Loaded) -> str:
    return "demo" if loaded.opened.demo else str(loaded.opened.path.absolute())


def _settings(loaded: Loaded, workers: int) -> p.Settings:
    """The session's, with a share of the memory if workers have the processor's in common."""
    settings, network = loaded.settings, loaded.network
    budget = settings.memory_budget
    if network.device.type == "cpu" and budget is None and workers:
        weights, free = network.weights_in_memory, memory_free(network.device)
        left = (free - workers * weights) // (2 * workers)
        if left > 0:
            budget = max(weights + left, math.ceil(weights / RESIDENT) + 1)
        else:  # less than the weights, so that they are streamed from disk
            budget = max(1, free // (2 * workers))
    return msgspec.structs.replace(
        settings, workers="", fresh=False, memory_budget=budget, dtype=_dtype(loaded)
    )


def _dtype(loaded: Loaded) -> str:
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return short[loaded.protocol.dtype]


def why_not(loaded: Loaded, events: Sequence[p.AnyEvent]) -> str:
    """Why a worker cannot take part, from the events of its opening; empty if it can."""
    ready: p.ModelReady | None = None
    for event in events:
        match event:
            case p.Refused(message=message) | p.JobEnded(status="failed", message=message):
                return f"it cannot open the checkpoint: {message}"
            case p.Opened(versions=theirs) if theirs != (ours := _versions(event)):
                names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
                said = ", ".join(
                    f"{name} {theirs.get(name, 'none')} instead of {ours.get(name, 'none')}"
                    for name in names
                )
                return f"it has {said}: install the same versions everywhere"
            case p.CheckpointRead(fingerprint=theirs) if (
                theirs != loaded.opened.checkpoint.fingerprint
            ):
                return f"{event.path} is another checkpoint there: copy the same files to it"
            case p.ModelReady():
                ready = event
    if ready is None:
        return "it has not loaded the model"
    compared = _compared(loaded.protocol), _compared(ready.protocol)
    if compared[0] != compared[1]:
        ours, theirs = map(msgspec.to_builtins, compared)
        name = next(each for each in ours | theirs if ours.get(each) != theirs.get(each))
        return f"its {name} is {theirs.get(name)!r} instead of {ours.get(name)!r}"
    return ""


def _versions(opened: p.Opened) -> dict[str, str]:
    """Versions of what figures may depend on, here."""
    spec = spec_of(p.Open(opened.source, opened.settings))
    assert isinstance(spec, OpenSpec)
    return spec.versions()


def _compared(protocol: p.Protocol) -> p.Protocol:
    """The protocol without what changes no figure: the number of a device, and streaming."""
    kind = protocol.device.split(":")[0]
    return msgspec.structs.replace(protocol, device=kind, streamed=msgspec.UNSET)
