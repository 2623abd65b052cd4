"""What a sweep finds in the store, and what is left to measure."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.sweep.candidates import Candidate, SweepTable, Tallies, figure_key, why_not
from engine.measure.sweep.units import units
from engine.workspace import Loaded


def from_store(
    loaded: Loaded, table: SweepTable, exactness: str, counts: JobCounts
) -> Generator[p.AnyEvent | None, None, None]:
    """Announce the stored figures of a table, and list what is left to measure.

    A figure on all windows answers every request; one on fewer only the request it was made for.
    """
    network = loaded.network
    full: dict[str, str] = {}
    partial: dict[str, str] = {}
    candidates: dict[str, Candidate] = {}
    wanted = units(network.layers, table.by)
    if table.direction == "restore":
        wanted = [unit for unit in wanted if unit.body]
    for unit in wanted:
        able: list[str] = []
        for name in unit.layers:
            if (why := why_not(loaded, name, table.format)) is None:
                able.append(name)
            else:
                yield p.Fallback(layer=name, format=str(table.format), why=why)
        if not able:
            continue
        held = replace(
            unit, layers=tuple(able), start=min(network.layers[name].start for name in able)
        )
        key = full[unit.name] = figure_key(loaded, held, table)
        if exactness:
            partial[unit.name] = figure_key(loaded, held, table, exactness)
        candidates[unit.name] = Candidate(held, key, [])
        if unit.body:
            table.body.add(unit.name)
    known = loaded.known([*full.values(), *partial.values()])
    tallies = loaded.part(Tallies, Tallies)
    found: list[str] = []
    for name, candidate in candidates.items():
        key = full[name]
        if key not in known and partial.get(name) in known:
            key = partial[name]
        if isinstance(fact := known.get(key), p.Sensitivity):
            table.found[name] = fact
            found.append(key)
        else:
            # Windows that an earlier sweep measured are not measured again.
            candidate.tallies = tallies.setdefault(key, [])
            table.todo.append(candidate)
    yield from counts.found(found, list(table.found.values()))
