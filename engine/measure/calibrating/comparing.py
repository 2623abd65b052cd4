"""Compares calibration sets: each layer quantised with a set's statistics, judged on held-out text.

Statistics are those of the unchanged model, not of the quantised blocks before as in a recipe's own
evaluation (GPTQ's "true sequential"). So they can be merged: a set costs one pass over its windows,
and a larger number of samples a pass over the new ones alone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec

from engine import protocol as p
from engine.errors import OutOfMemoryError, UsageError
from engine.formats.grammar import needs_calibration, parse_format
from engine.measure.calibrating import checks
from engine.measure.calibrating.course import Course
from engine.measure.calibrating.gathering import KEPT_SETS, Gathering, KeptStatistics
from engine.measure.calibrating.input_sums import (
    Energies,
    SetStatistics,
    run_over,
    statistics_bytes,
)
from engine.measure.calibrating.scoring import Variant, quantised, scored
from engine.measure.calibrating.windows import (
    OWN,
    EvaluationText,
    SetWindows,
    evaluation_texts,
    set_windows,
)
from engine.measure.calibration.approximate import why_not_given
from engine.measure.whole_model import refuse_streamed
from engine.model.inputs import shared_inputs
from engine.model.load import load_tokenizer
from engine.model.memory import check_memory, memory_free, memory_needed, size_of
from engine.model.quiet import quiet
from engine.service.jobs import Steps
from engine.store import keys
from engine.workspace import Loaded

Events = Generator[p.AnyEvent | None, None, None]
Fact = p.CalibrationCheck | p.CalibrationScore


def compare_sets(
    loaded: Loaded, recipe: Mapping[str, str], command: p.Calibrate, job: str
) -> Steps:
    """Compare calibration sets.

    Args:
        loaded: the model.
        recipe: formats by layer.
        command: sets, samples, lengths and texts.
        job: id, for progress.

    Yields:
        `Learned` with `CalibrationCheck` and `CalibrationScore` facts, `Progress`, `Notice`.

    Raises:
        TextError: a set or a text cannot be read.
        UsageError: the model is streamed from disk.
        OutOfMemoryError: statistics and weights do not fit beside the model.
    """
    counts = Course(timings={"load_s": loaded.load_s}, job=job)
    refuse_streamed(
        loaded.network, "comparisons of calibration sets", "once for every set and length",
        "score one set with qtui eval --calib SET",
    )  # fmt: skip
    opened, settings = loaded.opened, loaded.settings
    tokenizer = load_tokenizer(
        opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )
    with quiet():
        texts = evaluation_texts(loaded, command.texts, tokenizer)
    comparing = _Comparing(loaded, recipe, command, texts, tokenizer, counts)
    yield from comparing.run()
    result = p.CalibrationSets(
        method=command.method,
        sets=comparing.sets,
        texts=tuple(each.name for each in texts),
        samples=tuple(sorted(comparing.used)),
        seq_lens=comparing.seq_lens,
        protocols=tuple(
            (each.text.name, each.text.sha256, each.reference.windows.tokens) for each in texts
        ),
    )
    return msgspec.structs.replace(counts.outcome(), result=result)


class _Comparing:
    """One run of the job."""

    def __init__(
        self,
        loaded: Loaded,
        recipe: Mapping[str, str],
        command: p.Calibrate,
        texts: Sequence[EvaluationText],
        tokenizer: Any,
        counts: Course,
    ) -> None:
        self.loaded, self.command, self.counts = loaded, command, counts
        self.texts, self.tokenizer = list(texts), tokenizer
        self.formats = {name: parse_format(text) for name, text in sorted(recipe.items())}
        calibrated = [name for name, format in self.formats.items() if needs_calibration(format)]
        if not calibrated:
            raise UsageError(f"no layer of this model can take {command.method}")
        for name in calibrated:
            if (why := why_not_given(loaded, name, self.formats[name])) is not None:
                raise UsageError(f"{name}: {why}")
        shares = shared_inputs(loaded.network)
        self.inputs = tuple(dict.fromkeys(shares[name][0] for name in calibrated))
        """One layer for each input that statistics are of."""
        evaluated = [f"eval:{each.name}" for each in texts]
        named = (evaluated if asked == "eval" else [asked] for asked in command.sets)
        self.sets = tuple(dict.fromkeys(name for names in named for name in names))
        self.seq_lens = command.seq_lens or (loaded.windows.seq_len,)
        self.used: set[int] = set()
        """Numbers of windows that sets had."""
        self._facts: dict[str, Fact] = {}
        """By address, what is known."""
        self._energies: dict[str, tuple[checks.Energies, float]] = {}
        """Of each evaluation text, and the distance between its halves."""
        self._size = statistics_bytes(loaded.network, self.inputs)

    def run(self) -> Events:
        """Every set at every length."""
        yield self._memory()
        self.counts.tokens = sum(each.reference.windows.tokens for each in self.texts)
        for seq_len in self.seq_lens:
            numbers = self._samples(seq_len)
            self.counts.results += len(self.sets) * (len(numbers) + len(self._halves(numbers[-1])))
            self.counts.tokens += len(self.sets) * numbers[-1] * seq_len
        cuts = [(name, seq_len) for name in self.sets for seq_len in self.seq_lens]
        # All that can be refused is, before anything is measured; what the model writes takes long.
        read = {}
        for name, seq_len in cuts:
            if name != OWN:
                read[name, seq_len] = yield from self._windows(name, seq_len)
        for name, seq_len in cuts:
            self.counts.at = name
            windows = read.pop((name, seq_len), None)
            if windows is None:
                windows = yield from self._windows(name, seq_len)
            yield from self._set(windows)

    def _memory(self) -> p.Notice:
        """Say what is needed beside the model, before anything is computed.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        network, measured = self.loaded.network, self.command.measure
        shapes = (network.layers[name].shape for name in self.formats)
        weights = memory_needed(shapes, network.dtype) if measured else 0
        # Of all windows so far, of those that are added, and of the second half apart.
        needed = self._size * (3 if measured and self.command.halves else 2) + weights
        free = memory_free(network.device)
        what = "statistics of all inputs, and weights calibrated on them,"
        if self.loaded.settings.memory_budget is not None and needed > self.loaded.beside():
            raise OutOfMemoryError(
                f"{what} needs {size_of(needed)}, and the budget leaves "
                f"{size_of(self.loaded.beside())} beside the model: give a larger --memory-budget, "
                "a 16-bit --dtype, or --checks alone, which quantises nothing"
            )
        check_memory(needed, free, network.device, what=what)
        return p.Notice(
            "info",
            f"comparing calibration sets takes up to {needed / 2**20:,.0f} MiB beside the model, "
            f"{weights / 2**20:,.0f} MiB of it for quantised weights",
        )

    def _samples(self, seq_len: int) -> tuple[int, ...]:
        if self.command.samples:
            return self.command.samples
        most = max(1, self.loaded.settings.calib_tokens // seq_len)
        return tuple(sorted({max(1, most // 4), max(1, most // 2), most}))

    def _halves(self, most: int) -> tuple[p.CalibratedOn, ...]:
        """Which halves of so many windows are scored."""
        asked = self.command.measure and self.command.halves and most > 1
        return ("first half", "second half") if asked else ()

    # --- one set ------------------------------------------------------------------------------

    def _windows(self, name: str, seq_len: int) -> Generator[p.AnyEvent | None, None, SetWindows]:
        most = self._samples(seq_len)[-1]
        with quiet():
            return (
                yield from set_windows(
                    self.loaded, name, most, seq_len, self.texts, self.tokenizer, self.counts
                )
            )

    def _set(self, windows: SetWindows) -> Events:
        wanted, counts, seq_len = self._samples(windows.seq_len), self.counts, windows.seq_len
        numbers = sorted({min(number, windows.samples) for number in wanted})
        self.used |= set(numbers)
        variants = [Variant(windows, 0, number, number) for number in numbers]
        most = numbers[-1]
        for part in self._halves(most):
            cut = (0, most // 2) if part == "first half" else (most // 2, most)
            variants.append(Variant(windows, *cut, most, part))
        counts.results -= len(wanted) + len(self._halves(wanted[-1])) - len(variants)
        addresses = [key for each in variants for _, key in self._wanted(each)]
        stored = self.loaded.known(addresses)
        for address, fact in stored.items():
            if isinstance(fact, Fact):
                self._facts[address] = fact
        missing = [v for v in variants if any(a not in self._facts for _, a in self._wanted(v))]
        for variant in variants:
            yield from self._told(variant)
            if variant not in missing:
                counts.known_result()
        counts.tokens -= wanted[-1] * seq_len
        if missing:
            counts.tokens += max(each.end for each in missing) * seq_len
            yield from self._gathered(windows, missing)

    def _wanted(self, variant: Variant) -> list[tuple[EvaluationText, str]]:
        """Addresses of what is told of a variant, with the text: checks first."""
        checked = [] if variant.part else [(e, self._check_address(variant, e)) for e in self.texts]
        if not self.command.measure:
            return checked
        return checked + [(each, self._score_address(variant, each)) for each in self.texts]

    def _check_address(
        self, variant: Variant, text: EvaluationText, named: p.CalibratedKey | None = None
    ) -> str:
        return keys.CalibrationCheck(
            on=text.evaluation, calibration=variant.key, layers=self.inputs, named=named
        ).address

    def _score_address(
        self, variant: Variant, text: EvaluationText, named: p.CalibratedKey | None = None
    ) -> str:
        return keys.CalibrationScore(
            on=text.evaluation,
            recipe={name: str(format) for name, format in self.formats.items()},
            scale_dtype=self.loaded.scale_dtype,
            calibration=variant.key,
            named=named,
        ).address

    def _told(self, variant: Variant) -> Events:
        """Announce what is known of a variant, by the names of this command.

        A journal has addresses alone: by other names a fact has an address of its own.
        """
        for text, address in self._wanted(variant):
            if (fact := self._facts.get(address)) is None:
                continue
            named = _named(fact, variant, text.name, self.command.method)
            if named == fact:
                yield from self.counts.found([address], [fact])
                continue
            scored = isinstance(named, p.CalibrationScore)
            other = self._score_address if scored else self._check_address
            self.counts.known += 1
            yield p.Learned((other(variant, text, named.key),), (named,))

    def _gathered(self, windows: SetWindows, variants: Sequence[Variant]) -> Events:
        """Go once through the windows; at each number of samples check, quantise and score.

        Args:
            windows: of the set.
            variants: that are missing.
        """
        network = self.loaded.network
        gathering = Gathering(network, windows, self.inputs, self.loaded.batch_tokens, self.counts)
        kept = self.loaded.part(KeptStatistics, KeptStatistics)
        lineage = self._lineage(windows, gathering.rows)
        least = min(each.first or each.end for each in variants)
        known = kept.find(lineage, least)
        if known is not None:
            self.counts.tokens -= known.samples * windows.seq_len
        gathering.begin(0, known)
        for first in {each.first for each in variants if each.first}:
            gathering.begin(first)
        for variant in sorted(variants, key=lambda each: each.end):
            self.counts.at = variant.said
            if all(address in self._facts for _, address in self._wanted(variant)):
                yield from self._told(variant)  # measured a moment ago, as all of a smaller number
                self.counts.known_result()
                continue
            yield from gathering.up_to(variant.end)
            statistics = yield from gathering.of(variant.first, variant.end)
            yield from self._variant(variant, statistics)
            del statistics
            self.counts.result()
        count = min(KEPT_SETS, self.loaded.budget() // 4 // max(1, self._size))
        kept.keep(lineage, gathering.whole(0), count)

    def _batches(self, ids: Any) -> list[Any]:
        rows = max(1, self.loaded.batch_tokens // ids.shape[1])
        return [each.to(self.loaded.network.device) for each in ids.split(rows)]

    def _lineage(self, windows: SetWindows, rows: int) -> str:
        """Identifies the parts of a set, however many: the first window is the same."""
        return repr((windows.name, windows.key(0, 1), self.inputs, rows))

    # --- one variant --------------------------------------------------------------------------

    def _variant(self, variant: Variant, statistics: SetStatistics) -> Events:
        wanted = self._wanted(variant)
        known = [address for _, address in wanted if address in self._facts]
        for text, address in wanted:
            if address == self._check_address(variant, text) and address not in self._facts:
                fact = yield from self._check(variant, text, statistics)
                yield self._learnt(address, fact)
        missing = [each for each in wanted if each[1] not in self._facts]
        if missing:
            weights = yield from quantised(
                self.loaded, self.formats, statistics, self.counts, variant.said
            )
            for text, address in missing:
                score = yield from scored(
                    self.loaded, text, weights, variant, self.command.method, self.counts
                )
                yield self._learnt(address, score)
        if variant.part and known:  # measured a moment ago, as all of a smaller number
            yield from self._told(variant)

    def _learnt(self, address: str, fact: Fact) -> p.Learned:
        self._facts[address] = fact
        return self.counts.learnt(address, fact)

    def _check(
        self, variant: Variant, text: EvaluationText, statistics: SetStatistics
    ) -> Generator[p.AnyEvent | None, None, p.CalibrationCheck]:
        """What is told of a set's windows before anything is quantised with them."""
        theirs, spread = yield from self._energies_of(text)
        windows, ids = variant.windows, variant.windows.ids[: variant.end]
        apart = checks.distance(statistics.energies(), theirs)
        sums = statistics.sums.values()
        return p.CalibrationCheck(
            set=windows.name,
            text=text.name,
            seq_len=windows.seq_len,
            samples=variant.samples,
            tokens=ids.numel(),
            documents=windows.text.documents if windows.text.content else 0,
            channels=max(len(energy) for energy, _ in statistics.energies().values()),
            repetition=checks.repetition(ids),
            duplicates=checks.duplicates(ids),
            overlap=checks.overlap(ids, text.reference.windows.ids),
            distance=apart.mean,
            spread=spread,
            worst=apart.worst,
            largest=apart.largest,
            fourfold=apart.fourfold,
            experts=sum(len(each.experts) for each in sums),
            unseen=sum(each.unseen for each in sums),
        )

    def _energies_of(
        self, text: EvaluationText
    ) -> Generator[p.AnyEvent | None, None, tuple[checks.Energies, float]]:
        """Energies of an evaluation text, in one pass over it, and how far its halves differ."""
        if text.name not in self._energies:
            halves = [Energies(), Energies()]
            ids = text.reference.windows.ids
            middle = (len(ids) + 1) // 2
            for half, some in zip(halves, (ids[:middle], ids[middle:]), strict=True):
                if len(some):
                    yield from run_over(
                        self.loaded.network, self._batches(some), self.inputs, half.take,
                        self.counts, text.name,
                    )  # fmt: skip
                    self.counts.passed += some.numel()
            first, second = (half.energies() for half in halves)
            spread = checks.distance(first, second).mean
            self._energies[text.name] = checks.together(first, second), spread
        return self._energies[text.name]


def _named(fact: Fact, variant: Variant, text: str, method: str) -> Fact:
    """A fact by the names that this command has for its set and text."""
    windows = variant.windows
    named = msgspec.structs.replace(
        fact, set=windows.name, text=text, seq_len=windows.seq_len, samples=variant.samples
    )
    if isinstance(named, p.CalibrationScore):
        return msgspec.structs.replace(named, part=variant.part, method=method)
    return named
