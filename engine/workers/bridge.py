"""Connects an engine to a cluster of Ray: ``python -m engine.workers.bridge DESCRIPTOR ADDRESS``.

The only module that imports Ray, in a process of its own: Ray writes to the terminal, and ends its
process a minute after the cluster's head is gone. Bytes pass through: what an actor yields goes to
the engine's socket as it is. Nothing is retried by Ray, which may do a retried generator's work
twice: what a lost worker had in hand is given out again by the engine.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from engine import protocol as p
from engine.workers.channel import Channel
from engine.workers.cluster import Failed, Joined, Lost, Node, Place, placed, tell
from engine.workers.hosted import Hosted


def main(descriptor: str, address: str, hosted: type = Hosted) -> int:
    """Entry point of the process.

    Args:
        descriptor: of the socket to the engine.
        address: of the cluster.
        hosted: what the actors are.
    """
    control = socket.socket(fileno=int(descriptor))
    os.chdir("/")  # Ray has workers import from the folder that this process runs in
    try:
        tell(control, Joined(_nodes(address)))
    except Exception as error:  # noqa: BLE001  (Ray raises all kinds, and the engine says it)
        tell(control, Failed(_last_line(error)))
        return 1
    telling = threading.Lock()
    for place, connected in placed(control):
        given = (hosted, place, connected, control, telling)
        threading.Thread(target=_serve, args=given, daemon=True).start()
    os._exit(0)  # the engine is gone; Ray ends the actors of a process that has ended


def _nodes(address: str) -> tuple[Node, ...]:
    """Join the cluster; returns its nodes but this host's own."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    here = ray.get_runtime_context().get_node_id()
    return tuple(
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            gpus=int(node["Resources"].get("GPU", 0)),
            processors=int(node["Resources"].get("CPU", 0)),
        )
        for node in sorted(ray.nodes(), key=lambda node: (node["NodeName"], node["NodeID"]))
        if node["Alive"] and node["NodeID"] != here
    )


def _serve(
    hosted: type,
    place: Place,
    connected: socket.socket,
    control: socket.socket,
    telling: threading.Lock,
) -> None:
    """Have an actor run the commands that come over a socket, until either is gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    channel = Channel(connected)
    commands: queue.SimpleQueue[p.AnyCommand | None] = queue.SimpleQueue()
    try:
        actor: Any = (
            ray.remote(hosted)
            .options(
                num_gpus=1 if place.gpu else 0,
                num_cpus=place.processors,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
            )
            .remote(p.WIRE_VERSION, place.threads)
        )
        threading.Thread(target=_listen, args=(channel, commands, actor), daemon=True).start()
        while (command := commands.get()) is not None:
            run = actor.run.options(num_returns="streaming")
            for sent in run.remote(p.encode(command)):
                data = ray.get(sent)
                try:
                    channel.pass_on(data)
                except OSError:
                    return  # the engine needs this worker no more
    except Exception as error:  # noqa: BLE001  (Ray raises all kinds, and the engine says it)
        with telling, suppress(OSError):
            tell(control, Lost(place.worker, _why(error, place)))
    finally:
        channel.close()


def _listen(channel: Channel, commands: queue.SimpleQueue[p.AnyCommand | None], actor: Any) -> None:
    """Receive commands; end the actor once nobody sends any, whatever it is doing."""
    import ray

    try:
        while True:
            message = channel.receive()
            if isinstance(message, p.Command):
                commands.put(message)
    except (EOFError, OSError):
        ray.kill(actor)
        commands.put(None)


def _why(error: Exception, place: Place) -> str:
    """Why an actor is lost, in a sentence."""
    import ray
    from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if place.node not in alive or isinstance(error, ActorUnschedulableError):
        return "its host has left the cluster"
    if isinstance(error, ActorUnavailableError):
        return "its host cannot be reached"
    text = str(error)
    if isinstance(error, RayActorError) and "creation task" not in text:
        _, _, detail = text.partition("Worker exit detail: ")
        reason = detail.partition(" Some common causes")[0].strip()
        return f"its process ended{f': {reason}' if reason else ''}"
    return _last_line(error)


def _last_line(error: Exception) -> str:
    """What an error of Ray says after the stack of the other process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
