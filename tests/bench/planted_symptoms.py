"""Symptoms that were planted, and whether they are found, cured, and traced to the damaged layers.

    python -m tests.bench.planted_symptoms demo
    python -m tests.bench.planted_symptoms FOLDER --prompts-file tests/bench/chats.jsonl --chat
    python -m tests.bench.planted_symptoms constructed

Prompts are beginnings of functions and sentences in modules that the demo was not trained on, or
those of a file. ``constructed`` is the model of `tests.constructed`, whose symptoms are known.
Prints, a plant: prompts where the recipe does what the reference does not, the
layers or sets of them that win most, whether the first is what was damaged, how many prompts still
fail with some given back, and what is different inside the model where prompts fail. ``healthy`` is
`int8` everywhere: each alarm is false. ``zeroed`` and ``one-token`` have a head whose scales are
zero but for one row: the first, or that of a token which the model always finds likely.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from engine import protocol as p
from engine.client import in_process
from engine.client.in_process import InProcess
from engine.diagnosis.causes import causes
from engine.diagnosis.of_symptoms import alarms, rates, shown
from engine.formats.grammar import Format
from engine.measure.counts import JobCounts
from engine.measure.symptoms import symptoms
from engine.session import Session
from engine.texts.stdlib import modules
from engine.workspace import Loaded
from tests import constructed

Plant = Mapping[str, str]
Events = Generator[Any, None, dict[str, Any]]


def prompts(count: int) -> Iterator[dict[str, str]]:
    """Beginnings of functions and of docstrings, by the topic they are about."""
    found = 0
    for name, source in modules("held-out"):
        lines = source.split("\n")
        for at, line in enumerate(lines):
            code = line.lstrip().startswith(("def ", "class ")) and line.rstrip().endswith(":")
            prose = line.count(" ") > 8 and line.strip()[:1].isupper() and "(" not in line
            if at < 4 or not (code or prose):
                continue
            text = "\n".join(lines[at - 3 : at + 1])
            yield {"id": f"{name}:{at}", "prompt": text, "topic": "code" if code else "prose"}
            found += 1
            if found == count:
                return
            if found % 6 == 0:  # of many modules
                break


def named(session: Session, *parts: str, block: int) -> list[str]:
    """Layers of a block whose names have one of these parts."""
    return [
        name
        for row, name in enumerate(session.layers.names)
        if session.layers.blocks[row] == block and any(part in name for part in parts)
    ]


def plants(session: Session, block: int, low: str) -> dict[str, Callable[[], Plant]]:
    """Recipes: the damaged layers in ``low``, the rest of the body in 8 bits."""
    names, roles = session.layers.names, session.layers.roles
    body = {
        name: "int8"
        for name, role in zip(names, roles, strict=True)
        if role not in ("head", "embedding")
    }
    head = next(name for name, role in zip(names, roles, strict=True) if role == "head")

    def of(*layers: str) -> Plant:
        return body | dict.fromkeys(layers, low)

    return {
        "healthy": lambda: body,
        "attention": lambda: of(*named(session, "attn", block=block)),
        "mlp": lambda: of(*named(session, "mlp", block=block)),
        "head": lambda: of(head),
        "zeroed": lambda: body | {head: "int7-channel"},
        "one-token": lambda: body | {head: "int7-channel"},
    }


@contextmanager
def zeroed(row: int) -> Iterator[None]:
    """Inside, what a recipe has in ``int7-channel`` has scales of zero but for one row.

    Args:
        row: which one; −1 for the token with the largest mean logit after the evaluation text's
            tokens, and its weight turned to where it is always positive.
    """
    own = symptoms.recipe_weights

    def without(loaded: Loaded, formats: Mapping[str, Format], counts: JobCounts) -> Events:
        held = yield from own(loaded, formats, counts)
        found = dict(held)
        for name, format in formats.items():
            if str(format) == "int7-channel":
                weight = loaded.network.weight(name)
                kept = row if row >= 0 else likeliest(loaded, weight)
                found[name] = torch.zeros_like(weight)
                found[name][kept] = weight[kept]
        return found

    symptoms.recipe_weights = without
    try:
        yield
    finally:
        symptoms.recipe_weights = own


def likeliest(loaded: Loaded, head: torch.Tensor) -> int:
    """The token whose logit is furthest above zero on the evaluation text, by its least one."""
    ids = loaded.windows.ids[:1]
    network = loaded.network
    logits = network.logits(ids, network.final_state(ids, -1, None), (0, ids.shape[1]))
    return int(logits[0].float().quantile(0.02, 0).argmax())


def run(
    engine: InProcess, plant: Plant, file: Path, asked: argparse.Namespace, *, why: bool
) -> None:
    """Continue the prompts, and print what was found."""
    how = p.Sampling(asked.tokens, asked.temperature, chat=asked.chat)
    command = p.FindSymptoms(file=str(file), layers=dict(plant), sampling=how, why=why)
    for _ in engine.run(command):
        pass
    session = engine.session
    job = next(job for job in reversed(session.jobs.values()) if job.kind == "symptoms")
    if job.status != "done":
        raise SystemExit(job.message)
    found = job.read(p.Symptoms)
    done = shown([session.continued[found.recipe][each] for each in found.prompts])
    for rate in rates(done):
        print(
            f"    {rate.kind}: recipe {rate.changed.count}, reference {rate.reference.count}, "
            f"added {rate.added.count} of {rate.added.total}, chance {rate.chance:.3g}"
        )
    print(f"    alarms {len(alarms(done))} of {len(done)}")
    for topic in sorted({each.fact.topic for each in done}):
        some = [each for each in done if each.fact.topic == topic]
        print(f"      {topic}: {len(alarms(some))} of {len(some)}")
    traced = session.traced.get(found.recipe)
    if why and traced is not None:
        damaged = {name for name, format in plant.items() if format != "int8"}
        ranked = traced.ranked()
        same = set(ranked[0].layers) == damaged
        inside = set(ranked[0].layers) <= damaged
        said = "what was damaged" if same else "part of what was damaged" if inside else "another"
        print(f"    first: {said}")
        for fact in ranked[:5]:
            mark = "*" if set(fact.layers) <= damaged else " "
            print(
                f"    {mark} {fact.unit} wins {fact.kl:.3f} ± {fact.kl_se:.3f} of {fact.whole:.3f}"
            )
        for cure in traced.cures:
            print(f"    {len(cure.layers)} given back: {cure.left} of {cure.failing} still fail")
        inside_of(traced.contrast)
    for cause in causes(session, done, traced if why else None, list(set(plant.values()))):
        print(f"    {cause.id}: {cause.sentence}")


def inside_of(contrast: p.SymptomContrast | None) -> None:
    """Print what differs most where prompts fail."""
    if contrast is None:
        return
    print(f"    {contrast.failing} that fail against {contrast.healthy} {contrast.why}")
    for channel in contrast.channels[:2]:
        print(
            f"      channel {channel.channel} of {channel.layer}: {channel.failing:.3g} "
            f"({channel.healthy:.3g}), chance {channel.chance:.3g}"
        )
    for layer in contrast.layers[:2]:
        print(
            f"      error of {layer.layer}: {layer.failing:.1%} ({layer.healthy:.1%}), "
            f"chance {layer.chance:.3g}"
        )
    for head in contrast.heads[:2]:
        print(
            f"      head {head.head} of block {head.block}: {head.failing:.3g} "
            f"({head.healthy:.3g}), chance {head.chance:.3g}"
        )


def written(folder: Path) -> tuple[Path, Path, Path]:
    """The constructed model, its text and its prompts."""
    model, text, file = constructed.build(folder / "model"), folder / "text.txt", folder / "prompts"
    text.write_text(" ".join(constructed.says(["n0"], 70)))
    rows = [
        {"id": str(at), "prompt": " ".join(each), "topic": each[-1][0]}
        for at, each in enumerate(constructed.prompts(24))
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return model, text, file


def main() -> None:
    """Run the plants that are named."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model")
    given.add_argument("--plants", default="healthy,attention,mlp,head")
    given.add_argument("--prompts", type=int, default=24)
    given.add_argument("--healthy", type=int, default=200)
    given.add_argument("--prompts-file", type=Path)
    given.add_argument("--tokens", type=int, default=48)
    given.add_argument("--temperature", type=float, default=0.8)
    given.add_argument("--blocks", default="1")
    given.add_argument("--low", default="int2-channel")
    given.add_argument("--no-why", action="store_true")
    given.add_argument("--chat", action="store_true")
    asked = given.parse_args()
    settings = p.Settings(tokens=512, seq_len=256)
    if asked.model == "constructed":
        made = tempfile.TemporaryDirectory()
        model, text, asked.prompts_file = written(Path(made.name))
        asked.model, settings = str(model), p.Settings(text=str(text), tokens=64, seq_len=32)
    engine = in_process(asked.model)
    for event in engine.run(p.Open(asked.model, settings)):
        if isinstance(event, p.JobEnded) and event.status != "done":
            raise SystemExit(event.message)
    with tempfile.TemporaryDirectory() as folder:
        for block in map(int, asked.blocks.split(",")):
            known = plants(engine.session, block, asked.low)
            for name in asked.plants.split(","):
                count = asked.healthy if name == "healthy" else asked.prompts
                file = Path(folder, f"{count}.jsonl")
                rows = list(prompts(count))
                if asked.prompts_file:
                    lines = asked.prompts_file.read_text().splitlines()
                    rows = [json.loads(line) for line in lines][:count]
                file.write_text("\n".join(map(json.dumps, rows)))
                print(f"{asked.model} {name}, block {block}, {asked.low}", flush=True)
                why = name != "healthy" and not asked.no_why
                rows_kept = {"zeroed": 0, "one-token": -1}
                with zeroed(rows_kept[name]) if name in rows_kept else nullcontext():
                    run(engine, known[name](), file, asked, why=why)
    engine.close()


if __name__ == "__main__":
    main()
