"""Compares finished checkpoints with their original: weights layer by layer, and whole scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from engine import protocol as p
from engine.checkpoint import read_layer
from engine.errors import CheckpointError, EngineError
from engine.measure.block_loop import cross
from engine.measure.compare.alone import stored_facts
from engine.measure.compare.artefact import Artefact, open_artefact
from engine.measure.compare.by_logits import save_logits as write_logits
from engine.measure.compare.by_logits import score_by_logits
from engine.measure.compare.clipping import Clipping, clipping
from engine.measure.compare.explained import explanation
from engine.measure.compare.folded import spread
from engine.measure.compare.rounding import Grid, grid_of
from engine.measure.compare.running import ArtefactRun
from engine.measure.compare.turning import turned
from engine.measure.compare.unfolding import columns_of, confirmed, folded_into, unfolded
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Tally, difference, score_of
from engine.measure.evaluation.divergence_table import divergence_table
from engine.measure.evaluation.evaluate import baseline, run_reference
from engine.measure.evaluation.logits_file import read_logits
from engine.measure.evaluation.reference import reference_of
from engine.measure.preemption import repeated
from engine.measure.weights.reconstruction import compare as compared
from engine.model.fold_groups import FoldGroup, fold_groups
from engine.model.load import load_network
from engine.model.network import Network
from engine.model.selfcheck import check_on_window
from engine.service.in_thread import in_thread
from engine.service.jobs import Outcome, Steps
from engine.session import KEPT
from engine.store import keys
from engine.workspace import Loaded, Opened

T = TypeVar("T")
Events = Generator[p.AnyEvent | None, None, None]
PLAIN = 2.0**-7
"""Relative error of a plain layer that was rotated alone: its 16 bits, and those of the matrix."""


def compare_files(opened: Opened, artefacts: Sequence[str], job: str, logits: str = "") -> Steps:
    """Compare the weights of finished checkpoints with the original's, from the files alone.

    Args:
        opened: the original.
        artefacts: folders or hub ids.
        job: id, for progress.
        logits: a logits file of llama.cpp that each is run against; none if empty.

    Yields:
        `ArtefactOpened`, `Learned` with `StoredLayer`, `ArtefactLayer` and `ArtefactTable` facts,
        `Progress`.

    Raises:
        CheckpointError: one cannot be read, or is of another model.
    """
    counts = JobCounts(job=job)
    file = read_logits(Path(logits)) if logits else None
    found = [open_artefact(source, opened) for source in artefacts]
    for each in found:
        yield each.opened()
    for each in found:
        yield from stored_facts(opened, each.checkpoint, each.listed, counts)
        yield from _layers(each, {}, counts)
        if file is not None:
            yield from score_by_logits(opened, each.checkpoint, each.settle_all, file, counts)
    return _outcome(found, counts)


def compare_models(
    loaded: Loaded, artefacts: Sequence[str], restore: int, job: str, save_logits: str = ""
) -> Steps:
    """Compare finished checkpoints with the original: weights, then scores on the same windows.

    Args:
        loaded: the original.
        artefacts: folders or hub ids.
        restore: for how many layers of each, those that err most first, to measure what giving that
            layer back wins.
        job: id, for progress.
        save_logits: where to write the original's probabilities on its windows; nowhere if empty.

    Yields:
        `ArtefactOpened`, `Learned` with `ArtefactLayer`, `ArtefactScore` and `LayerRestored` facts,
        `Progress`.

    Raises:
        CheckpointError: one cannot be read, or is of another model.
        OutOfMemoryError: it does not fit beside the original.
    """
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
    found = [open_artefact(source, loaded.opened) for source in artefacts]
    for each in found:
        yield each.opened()
    if save_logits:
        yield from write_logits(loaded, Path(save_logits), counts)
    nll = (yield from baseline(loaded, counts)).nll
    for each in found:
        yield from stored_facts(loaded.opened, each.checkpoint, each.listed, counts)
        worst = yield from _layers(each, fold_groups(loaded.network), counts)
        scoring = _Scoring(loaded, each, counts, nll)
        # A layer that is fused in one of the two cannot be given back by itself.
        whole = [layer for layer in worst if layer in each.listed]
        yield from scoring.score(whole[:restore])
    return _outcome(found, counts)


def _outcome(artefacts: Sequence[Artefact], counts: JobCounts) -> Outcome:
    compared = p.Comparison(tuple(each.checkpoint.fingerprint for each in artefacts))
    return msgspec.structs.replace(counts.outcome(), result=compared)


# --- weights ------------------------------------------------------------------------------------


def _layers(
    artefact: Artefact, groups: Mapping[str, FoldGroup], counts: JobCounts
) -> Generator[p.AnyEvent | None, None, list[str]]:
    """Compare every layer; returns those that differ, the worst first."""
    original = artefact.original
    mine = artefact.checkpoint.fingerprint
    found = {
        row.name: keys.ArtefactLayer(
            on=original.files, artefact=mine, layer=row.name, norms=bool(groups)
        )
        for row in artefact.shared
    }
    addresses = {name: key.address for name, key in found.items()}
    known = {
        address: fact
        for address, fact in original.known(list(addresses.values())).items()
        if isinstance(fact, p.ArtefactLayer)
    }
    yield from counts.found(list(known), list(known.values()))
    facts = {fact.layer: fact for fact in known.values()}
    left = [name for name, address in addresses.items() if address not in known]
    stage = counts.stage("comparing", len(left))
    for done, layer in enumerate(left):
        yield stage.step(done, layer)
        step = partial(layer_fact, artefact, layer, groups.get(layer))
        fact = counts.timed("compare_s", step)()
        facts[layer] = fact
        # What cannot be read is not looked up: it may be mended, or the disk be back.
        key = msgspec.structs.replace(found[layer], refused=fact.refused)
        yield counts.learnt(key.address, fact)
    apart = [fact for fact in facts.values() if fact.rounding != "same" and not fact.refused]
    # By what is lost of the layer, times how much there is of it: a guess of the order.
    apart.sort(key=lambda fact: -fact.error.frobenius)
    return [fact.layer for fact in apart]


def layer_fact(artefact: Artefact, layer: str, group: FoldGroup | None = None) -> p.ArtefactLayer:
    """One layer of a finished checkpoint against its original; holds both in memory.

    Args:
        artefact: the finished checkpoint.
        layer: one that both have.
        group: what is before the layer, where the model is loaded; its norm tells folded scales.
    """
    holds, bits = artefact.holds(layer), artefact.bits(layer)
    original = artefact.original
    weight = read_layer(original.checkpoint, original.rows[layer])
    try:
        artefact.settle(layer, weight)
        stored = artefact.read(layer)
    except CheckpointError as error:
        nan = math.nan
        return p.ArtefactLayer(
            artefact=artefact.checkpoint.fingerprint,
            layer=layer,
            holds=holds,
            bits=bits,
            error=p.WeightError(nan, nan, nan, nan, nan),
            rounding="other",
            displaced=nan,
            steps=nan,
            refused=str(error),
        )
    scales = columns_of(artefact, layer, weight, stored, group)
    arrange = artefact.arrangement(layer)
    levels = arrange(stored)
    grid = grid_of(arrange(scales.into(weight)), levels, doubt=scales.doubt)
    found = None
    if grid.rounding in ("solved", "other"):
        scales = confirmed(scales, artefact, layer, weight, stored)
        target = scales.into(weight)
        grid = grid_of(arrange(target), levels, doubt=scales.doubt)
        if grid.rounding in ("solved", "other"):
            found = explanation(target, stored, artefact.heads(layer))
            explained = found is not None
            turn = turned(artefact, layer, weight, stored, group, explained=explained)
            if turn is not None:
                scales = unfolded(artefact, layer, weight, stored, group, turn)
                grid = grid_of(arrange(scales.into(weight)), levels, doubt=scales.doubt)
    errors = compared(weight, scales.out_of(stored))
    if scales.turn is not None and artefact.is_plain(layer) and errors.fact.relative < PLAIN:
        grid = Grid("same", 0.0, 0.0)
    clipped = Clipping()
    if found is None and grid.rounding != "same":
        clipped = clipping(artefact.quantised(layer), scales.into(weight))
    declared, read_as = artefact.reading(layer)
    return p.ArtefactLayer(
        artefact=artefact.checkpoint.fingerprint,
        layer=layer,
        holds=holds,
        bits=bits,
        error=errors.fact,
        rounding=grid.rounding,
        displaced=grid.displaced,
        steps=grid.steps,
        folded=spread(scales.columns),
        declared=declared,
        read_as=read_as,
        mistake="" if found is None else found.mistake,
        factor=1.0 if found is None else found.factor,
        left=math.nan if found is None else found.relative,
        rotated=" and ".join(scales.turn.kinds) if scales.turn else "",
        clipped=clipped.share,
        clipped_input=clipped.input,
        clipped_in_input=clipped.input_share,
        clipped_output=clipped.output,
        clipped_in_output=clipped.output_share,
        divisor=clipped.divisor,
    )


# --- scores -------------------------------------------------------------------------------------


class _Scoring:
    """One finished checkpoint on the windows of its original."""

    def __init__(self, loaded: Loaded, artefact: Artefact, counts: JobCounts, nll: float) -> None:
        self.loaded, self.artefact, self.counts, self.nll = loaded, artefact, counts, nll
        self.mine = artefact.checkpoint.fingerprint
        self.reference = reference_of(loaded)

    def score(self, restore: Sequence[str]) -> Events:
        """Its score, and what restoring layers wins; from the store where they are there."""
        on = self.loaded.evaluation
        whole = keys.ArtefactScore(on=on, artefact=self.mine).address
        single = {
            layer: keys.LayerRestored(on=on, artefact=self.mine, layer=layer).address
            for layer in restore
        }
        known = self.loaded.known([whole, *single.values()])
        yield from self.counts.found(list(known), list(known.values()))
        left = {layer: address for layer, address in single.items() if address not in known}
        if whole in known and not left:
            return
        network = yield from self._network()
        run = ArtefactRun(self.reference, network, keep=bool(left))
        tallies: list[Tally] = []
        stage = self.counts.stage("measuring", len(self.reference.batches))
        for batch in range(len(self.reference.batches)):
            yield stage.step(batch, self.artefact.checkpoint.name)
            yield from run_reference(self.reference, batch, self.counts)
            if network.streamed:
                continue
            tallies.append((yield from self._timed(partial(run.run, batch))))
            yield None
        if network.streamed:  # a block is read once for all micro-batches
            crossings = [run.set_out(batch) for batch in range(len(self.reference.batches))]
            yield from cross(network, crossings, self.counts, phase="measuring")
            tallies = [run.run(batch) for batch in range(len(self.reference.batches))]
        if whole not in known:
            table = divergence_table(run.positions)
            yield self.counts.learnt(whole, self._fact(tallies, table))
        stage = self.counts.stage("measuring", len(left))
        for done, (layer, address) in enumerate(left.items()):
            yield stage.step(done, layer)
            fact = yield from self._restored(run, layer, tallies)
            yield self.counts.learnt(address, fact)

    def _network(self) -> Generator[p.AnyEvent | None, None, Network]:
        """Its model, loaded aside on the original's device."""
        settings, counts = self.loaded.settings, self.counts
        artefact, device = self.artefact, str(self.reference.network.device)
        dtype = KEPT[self.loaded.protocol.dtype]

        def load(report: Callable[[p.Progress], None]) -> Network:
            artefact.settle_all()
            return load_network(
                artefact.checkpoint.folder,
                checkpoint=artefact.checkpoint,  # as the original settled how to read it
                device=device,
                dtype=dtype,
                budget=settings.memory_budget,
                trust_remote_code=settings.trust_remote_code,
                follow_links=settings.follow_links,
                on_stage=lambda stage: report(
                    p.Progress(
                        job=counts.job,
                        done=stage.done,
                        total=stage.total,
                        phase="comparing",
                        seconds_left=math.nan,
                        subject=artefact.checkpoint.name,
                    )
                ),
            )

        network = yield from in_thread("loading", load, wait=False)
        network.should_stop = self.loaded.should_stop
        ids = self.reference.windows.ids
        vocabulary = network.model.get_input_embeddings().weight.shape[0]
        if int(ids.max()) >= vocabulary:
            raise EngineError(
                f"{artefact.checkpoint.name} has {vocabulary} tokens, and the text uses token "
                f"{int(ids.max())} of the original: its vocabulary was cut"
            )
        check_on_window(network, ids[:1].to(network.device))
        for sentence in network.zeroed:
            yield p.Notice("error", f"{artefact.checkpoint.name}: {sentence}")
        return network

    def _timed(self, step: Callable[[], T]) -> Generator[p.AnyEvent | None, None, T]:
        return (yield from repeated(self.counts.timed("measure_s", step)))

    def _fact(self, tallies: Sequence[Tally], table: p.DivergenceTable) -> p.ArtefactScore:
        found = score_of(tallies, self.reference.windows.targets, self.nll)
        return p.ArtefactScore(artefact=self.mine, **vars(found), table=table)

    def _restored(
        self, run: ArtefactRun, layer: str, whole: Sequence[Tally]
    ) -> Generator[p.AnyEvent | None, None, p.LayerRestored]:
        """What giving one layer back wins: the whole's figures minus those without its error."""
        network, artefact = self.reference.network, self.artefact
        group = fold_groups(network).get(layer)
        scales = self.counts.timed("compare_s", partial(folded_into, artefact, layer, group))()
        weight = network.weight(layer)
        # Its inputs, or those of the layer after it, are divided by what it was multiplied by.
        weight = artefact.given_back(layer, scales.into(weight).to(weight.dtype))
        found: dict[int, Tally] = {}
        batches = range(len(self.reference.batches))
        if run.network.streamed:
            crossings = [
                run.giving_back(batch, layer, weight, partial(found.__setitem__, batch))
                for batch in batches
            ]
            yield from cross(run.network, crossings, self.counts, phase="measuring")
        for batch in batches:
            if batch not in found:
                found[batch] = yield from self._timed(partial(run.restored, batch, layer, weight))
                yield None
        wins = [
            Tally(each.dnll - left.dnll, each.kl - left.kl, each.agree - left.agree)
            for each, left in ((whole[batch], found[batch]) for batch in batches)
        ]
        targets = self.reference.windows.targets
        gain = difference(wins, targets)
        return p.LayerRestored(
            artefact=self.mine,
            layer=layer,
            kl=gain.kl.mean,
            kl_se=gain.kl.se,
            dnll=gain.dnll.mean,
            dnll_se=gain.dnll.se,
            tokens=gain.dnll.windows * targets,
        )
