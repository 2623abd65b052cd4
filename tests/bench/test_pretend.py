"""The engine that benchmarks pretend with answers on its socket as a real one does."""

from __future__ import annotations

import asyncio

from engine import protocol as p
from engine.service.wire import frame, read_frame
from engine.store.paths import session_name, socket_file
from tests.bench import pretend

LAYERS = 300


async def test_it_lists_its_layers_and_sweeps() -> None:
    serving = asyncio.create_task(pretend.serve("demo", LAYERS, 1000.0))
    path = socket_file(session_name("demo"))
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(frame(p.Hello()))
        assert isinstance(await read_frame(reader), p.Hello)
        assert isinstance(await read_frame(reader), p.Snapshot)
        for command in (p.Open("demo", p.Settings()), p.Sweep(("int4-g128",))):
            writer.write(frame(command))
        layers = 0
        while True:
            message = await read_frame(reader)
            assert isinstance(message, p.Sent)
            match message.event:
                case p.LayersListed(names=names):
                    layers = len(names)
                case p.Learned(facts=(p.Sensitivity(), *_)):
                    break
        writer.write(frame(p.Stop()))
        await serving
    assert layers == LAYERS
    writer.close()
