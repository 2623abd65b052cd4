"""Facts: measurements, stored once under a key made of everything they depend on."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from engine.protocol.contrast import ContrastedChannel, ContrastedHead, ContrastedLayer
from engine.protocol.divergence import DivergenceTable, ScoreOnText
from engine.protocol.keys import By, CalibratedKey, CalibratedOn, Direction, EffectKey
from engine.protocol.message import Message
from engine.protocol.symptoms import Choice, Continuation, RestoredBy, Sampling


class Fact(Message, frozen=True, gc=False):
    """A measurement: stored once under a key made of everything it depends on, never changed.

    Facts contain no reference cycles: with ``gc=False`` the collector skips large tables of them.
    """


class Outliers(msgspec.Struct, frozen=True, gc=False):
    """Weights beyond ``sigma`` standard deviations of their layer."""

    sigma: float
    count: int
    fraction: float
    max_abs: float


class WeightError(msgspec.Struct, frozen=True, gc=False):
    """Difference between a weight and its quantised value."""

    frobenius: float
    relative: float
    """``‖W − Ŵ‖ / ‖W‖``."""
    max_abs: float
    mean_abs: float
    sqnr_db: float


class StoredCodes(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How the codes of a quantised layer are used, and its scales and zero points."""

    levels: int
    """Codes that there are; 0 where they are numbers in themselves, and the next two are 0."""
    unused: int
    """Of these, how many no weight has."""
    saturated: float
    """Share of the weights that have the first or the last code."""
    scales: int
    """How many scales there are."""
    scale_min: float
    """Smallest magnitude of those that are finite and not zero; nan without any."""
    scale_max: float
    """Largest magnitude of those."""
    scales_zero: int = 0
    scales_negative: int = 0
    scales_not_finite: int = 0
    zero_min: int = -1
    """Smallest zero point; -1 where there are none."""
    zero_max: int = -1
    zeros_outside: int = 0
    """Zero points at the first or the last code, where tools disagree about what is stored."""
    zeros_wrapped: int = 0
    """Zero points of 0 that GPTQ's version 1 stores as the last code, which some readers take for
    one more than that."""
    scales_subnormal: int = 0
    """Scales below the normal numbers of the dtype they are stored in, which have fewer digits."""
    codes_not_finite: int = 0
    """Codes that are NaN or infinite, where they are numbers in themselves."""
    ordered: bool = False
    """Whether the first and the last code are the ends of the grid: those of integers."""
    layout: str = ""
    declared: str = ""
    """What the config says of it, where that is not how it is read."""
    read_as: str = ""


class LayerWeights(Fact, frozen=True, gc=False, kw_only=True):
    """Statistics of one layer's weights, from triage.

    A stored fact holds only the statistics: each error is a fact of its own, except in facts of the
    previous version. In a session, ``errors`` holds all formats that are known.
    """

    layer: str
    outliers: Outliers
    range_ratio: float
    waste: float
    kurtosis: float
    nan: int
    inf: int
    zero_rows: int
    dead_columns: int = 0
    denormals: int = 0
    mean: float = 0.0
    std: float = 0.0
    worst_column: int = -1
    """Input channel with the largest weights, and its largest weight in σ."""
    worst_column_sigma: float = 0.0
    large_columns: tuple[int, ...] = ()
    """Input channels that dwarf the median one, the largest weight first; as many as are listed."""
    large_columns_sigma: tuple[float, ...] = ()
    """Their largest weights in σ."""
    levels: int = 0
    """Most distinct values among 32 consecutive weights, of sampled rows as are the next five; 0 if
    not known."""
    row_levels: int = 0
    """Most distinct values among the first 1,024 weights of a row; 0 if not known."""
    mantissa: int = -1
    """Bits of the mantissa that any weight needs; -1 if not known."""
    noise_g64: float = float("nan")
    """Rounding noise in groups of 64 over that in groups of 128, from their ranges."""
    noise_g32: float = float("nan")
    """The same in groups of 32."""
    mixed: float = 0.0
    """Share of groups of 128 with weights of two sizes, one four times the other."""
    rows: bytes = b""
    """Sketch of the norms of its rows, of use to find layers that were swapped; empty in a session,
    and where it tells nothing."""
    columns: bytes = b""
    """The same of its columns."""
    codes: StoredCodes | None = None
    """Of a layer that is stored quantised."""
    errors: dict[str, WeightError] = {}
    """By canonical format."""
    refused: dict[str, str] = {}
    """Formats the layer cannot hold, with the reason."""


class Activation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Figures of one tensor of activations over the calibration text."""

    max: float
    """Largest magnitude."""
    mean: float
    """Mean magnitude."""
    std: float
    p99: float
    """99th percentile of the magnitudes, from a sketch: within 1.6% of its value."""
    channels: int
    channel_median: float
    """Median of all channels' largest magnitudes."""
    outlier_channels: tuple[int, ...]
    """Channels whose largest magnitude is more than six times that median, the largest first; as
    many as are listed."""
    outlier_maxima: tuple[float, ...]
    """Their largest magnitudes."""
    by_median: int
    """Number of outlier channels by that rule."""
    by_mean: int
    """Number of channels above six times the mean of all channels' largest magnitudes."""
    largest_norm: float
    """Largest norm of a token."""
    median_norm: float
    """Median norm, from a sketch."""
    position: int
    """Place in its window of the token with the largest norm; -1 if not known."""
    massive: int
    """Tokens whose norm is at least twenty times the median."""
    nonfinite: int = 0
    """Numbers that are NaN or infinite, which are left out of the rest."""

    @property
    def ratio(self) -> float:
        """Largest over mean magnitude."""
        return self.max / self.mean if self.mean > 0 else float("nan")


class LayerActivations(Fact, frozen=True, gc=False, kw_only=True):
    """What one layer is given and returns, over the calibration text."""

    layer: str
    tokens: int
    """Of experts, tokens given to any of them."""
    input: Activation
    output: Activation | None = None
    """None for experts, and for the head."""
    shared_with: str = ""
    """The first layer with the same input; itself, if it is that."""
    expert_tokens: list[int] = []
    """Tokens given to each expert; empty for other layers."""
    module: str = ""
    """The attention or MLP module that this layer is the last of; empty for other layers."""
    module_output: Activation | None = None
    """What that module returns; of a mixture, of its experts together."""


class OutputError(Fact, frozen=True, gc=False, kw_only=True):
    """The error of one layer's outputs in one format, on the unchanged model's inputs.

    The output is ``y = x Wᵀ``, without a bias, and ``ŷ`` is that of the quantised layer. An output
    channel's error is ``mean |y − ŷ| / mean |y|`` over tokens. Of experts, each has its own
    channels, on its own tokens; those of an expert without tokens do not count.
    """

    layer: str
    format: str
    """Canonical."""
    recipe: str = ""
    """Hash of the recipe that it belongs to, where the format's methods use what the recipe makes
    of the blocks before; empty if the error is the same in all recipes."""
    tokens: int
    """Of experts, tokens given to any of them."""
    relative: float = float("nan")
    """``‖Y − Ŷ‖ / ‖Y‖`` over all tokens and channels."""
    channels: int = 0
    """Number of channels that have an error."""
    over_10: int = 0
    """Channels whose error is above 10%."""
    over_50: int = 0
    counts: list[int] = []
    """Channels by their error, between the bounds of `OUTPUT_ERROR_BOUNDS`: below the first one,
    …, from the last one on."""
    worst: list[int] = []
    """Numbers of the channels with the largest errors, the worst first."""
    worst_errors: list[float] = []
    """Their errors; infinite where the reference output is 0 throughout and the other is not."""
    worst_experts: list[int] = []
    """The experts that these channels belong to; empty for other layers."""
    unseen_experts: int = 0
    """Experts that got no token."""
    nonfinite: int = 0
    """Channels whose error is not a number, since an output is not finite."""
    why: str = ""
    """Why it could not be measured; empty if it was."""


OUTPUT_ERROR_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Bounds between the bins of `OutputError.counts`."""


class BlockDrift(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How far one block's output is from the reference's in a recipe.

    Each figure is ``‖h′ − h‖ / ‖h‖`` of a token, its mean over tokens: a token with a massive norm
    counts as any other. NaN if it is not known.
    """

    block: int
    drift: float
    """Of the output, with the whole recipe."""
    injected: float = float("nan")
    """Of the output with this block alone quantised, on the reference's input."""
    propagated: float = float("nan")
    """Of the output of the unquantised block on the recipe's input: what came in and was passed
    on."""
    control: float = float("nan")
    """Of the output of the unquantised block on the reference's input with random noise added, of
    the same norm as the recipe's drift at every token."""
    attention: list[float] = []
    """For each head, the mean over queries of KL(reference ‖ recipe) of its attention
    probabilities, in nats; empty if the block has none."""


class Drift(Fact, frozen=True, gc=False, kw_only=True):
    """How a recipe's error grows from block to block."""

    recipe: str
    """Hash of the recipe."""
    tokens: int
    embedding: float
    """Drift of the first block's input."""
    blocks: list[BlockDrift]
    attention_windows: int = 0
    attention_tokens: int = 0
    """Positions of each of these windows that the attention was compared on."""
    no_attention: str = ""
    """Why attention was not compared; empty if it was."""
    not_split: str = ""
    """Why what a block adds is not known apart from what it is given; empty if it is."""


class LayerError(Fact, frozen=True, gc=False):
    """The error of one layer's weights in one format."""

    layer: str
    format: str
    """Canonical."""
    error: WeightError | None = None
    """None if the layer cannot hold the format."""
    refused: str = ""
    """Why it cannot hold the format."""


class GroupSize(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A weight with another group size."""

    format: str
    """Canonical."""
    rmse: float
    """Root of the mean square of ``Ŵ − W``."""
    relative: float
    """``‖W − Ŵ‖ / ‖W‖``."""
    bits: int
    """Stored bits of the layer."""


class ClipRatio(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A weight whose groups are rounded within a part of their range.

    ``total² = clipping² + rounding²``, each over ``‖W‖``.
    """

    ratio: float
    """Of the whole range."""
    clipping: float
    """Error of the weights beyond it."""
    rounding: float
    """Error of the weights within it."""
    total: float
    clipped: int
    """Weights beyond it."""


class LayerRanges(Fact, frozen=True, gc=False, kw_only=True):
    """Errors of one layer's weights in several group sizes, and in clipped ranges."""

    layer: str
    format: str
    """An integer format: its bits and symmetry are those of all, its groups are those clipped."""
    groups: tuple[GroupSize, ...]
    """The smallest first; the last is a whole row."""
    clips: tuple[ClipRatio, ...]
    """The whole range first."""


class FormatTried(Fact, frozen=True, gc=False, kw_only=True):
    """One layer in a format, on calibration inputs."""

    layer: str
    format: str
    """Canonical."""
    weight_error: float
    """``‖W − Ŵ‖ / ‖W‖``, with scales of inputs taken back."""
    output_error: float
    """``‖ŷ − y‖ / ‖y‖`` over calibration tokens; nan where there are none."""
    tokens: int
    """Behind the output error."""
    columns: int = 0
    """Input channels that ``+outlier`` keeps in 16 bits, of all experts together."""
    refused: str = ""
    """Why it could not be quantised; figures are nan."""


Rounding: TypeAlias = Literal["same", "nearest", "solved", "other"]
"""How a stored weight follows from its original: the same; every weight at the nearest level of
its grid; rounded to make up for other weights' errors, as GPTQ does; or from other weights."""


class StoredLayer(Fact, frozen=True, gc=False, kw_only=True):
    """One layer of a finished checkpoint, by itself."""

    artefact: str
    """Fingerprint of the finished checkpoint."""
    layer: str
    holds: str
    """What it is stored as: a format where it is one of ours, else its layout or dtype."""
    bits: float
    """Stored bits a weight, scales and zero points included."""
    shape: tuple[int, ...]
    """``[out, in]`` or ``[experts, out, in]``."""
    codes: StoredCodes | None = None
    """How its codes are used; None where it has none that are read by themselves."""
    rms: float = float("nan")
    """Root mean square of its weights that are finite; nan where they were not looked at."""
    largest: float = float("nan")
    """Largest magnitude of these."""
    not_finite: int = 0
    """Weights that are NaN or infinite."""
    zero_rows: int = 0
    groups_uneven: int = 0
    """Groups of an index (``g_idx``) that have more or fewer inputs than the others."""
    groups_unordered: bool = False
    """Whether groups are not in order, though the config says that they are."""
    refused: str = ""
    """Why it could not be read."""


class ArtefactLayer(Fact, frozen=True, gc=False, kw_only=True):
    """One layer of a finished checkpoint, against its original."""

    artefact: str
    """Fingerprint of the finished checkpoint."""
    layer: str
    holds: str
    """What it is stored as: a format where it is one of ours, else its layout or dtype."""
    bits: float
    """Stored bits a weight, scales and zero points included."""
    error: WeightError
    """With scales folded into the layer taken back."""
    rounding: Rounding
    displaced: float
    """Share of its weights that are not at the nearest level of their grid."""
    steps: float
    """Root mean square of its errors, in steps of its grid; nan if it has none."""
    folded: float = 1.0
    """The largest scale of an input channel that was folded into it, by AWQ or SmoothQuant, over
    the smallest; 1 if there are none."""
    declared: str = ""
    """What the configuration says it is stored as, where it is read as something else."""
    read_as: str = ""
    """And what it is read as."""
    mistake: str = ""
    """A mistake that explains most of its error: see `engine.measure.compare.explained`."""
    factor: float = 1.0
    """What the stored weights are multiplied by, or the steps by which they are off."""
    left: float = float("nan")
    """Its relative error with the mistake undone."""
    rotated: str = ""
    """Rotations that were multiplied into it, and taken back for `error`: ``residual stream``,
    ``heads``, ``input``, with ``and`` between; ``input, not undone`` where the matrix is not
    known."""
    clipped: float = float("nan")
    """Share of the original's weights more than half a step beyond the ends of its grid; nan where
    they are not known."""
    clipped_input: int = -1
    """The input channel with the largest share of clipped weights."""
    clipped_in_input: float = float("nan")
    clipped_output: int = -1
    """The output channel with the largest share of clipped weights."""
    clipped_in_output: float = float("nan")
    divisor: float = float("nan")
    """What the largest weight of a group, or its range, is divided by for its scale, such as 7.5;
    nan if that is no number that quantisers use."""
    refused: str = ""
    """Why it could not be compared; figures are nan."""


class ArtefactScore(Fact, frozen=True, gc=False, kw_only=True):
    """A finished checkpoint on the evaluation windows, against its original."""

    artefact: str
    nll: float
    ppl: float
    ppl_low: float
    ppl_high: float
    dnll: float
    dnll_se: float
    kl: float
    kl_se: float
    top1: float
    tokens: int
    table: DivergenceTable | None = None
    """Position by position, as llama.cpp tells it; None in facts of an earlier version."""


class ArtefactTable(Fact, frozen=True, gc=False):
    """A finished checkpoint against a file of probabilities that the original left."""

    artefact: str
    """Fingerprint of the finished checkpoint."""
    logits: str
    """SHA-256 of the file."""
    table: DivergenceTable


class LayerRestored(Fact, frozen=True, gc=False, kw_only=True):
    """What giving one layer of a finished checkpoint back its original weight wins."""

    artefact: str
    layer: str
    kl: float
    """By how much KL falls; negative if it rises."""
    kl_se: float
    dnll: float
    """By how much NLL falls."""
    dnll_se: float
    tokens: int


class RecipeTable(Fact, frozen=True, gc=False):
    """A recipe against the reference, position by position, as llama.cpp tells it."""

    recipe: str
    """Its hash."""
    table: DivergenceTable


class RecipeOnText(Fact, frozen=True, gc=False):
    """A recipe on one evaluation text, and by position in its windows."""

    recipe: str
    """Its hash."""
    score: ScoreOnText


class Likelihoods(Fact, frozen=True, gc=False, kw_only=True):
    """How likely continuations are after their contexts."""

    recipe: str
    """Hash of the recipe; empty for the reference."""
    log: tuple[float, ...]
    """Natural logarithm of the probability of each continuation."""
    greedy: tuple[bool, ...]
    """Whether each token of it is the most likely one."""


class CalibrationCheck(Fact, frozen=True, gc=False, kw_only=True):
    """What is known of a calibration set before anything is quantised with it."""

    set: str
    """As it was asked for."""
    text: str
    """The evaluation text that it is held against."""
    seq_len: int
    samples: int
    tokens: int
    documents: int
    """That the set was joined from."""
    channels: int
    """Of the widest input of the layers that are calibrated."""
    repetition: float
    """Share of runs of 8 tokens that occurred before in the set."""
    duplicates: float
    """Share of windows with half of their runs of 8 tokens or more in earlier windows."""
    overlap: float
    """Share of the evaluation text's runs of 13 tokens that occur in the set."""
    distance: float
    """Mean over inputs of the median over channels of ``|log₂|`` of the ratio of mean squares."""
    spread: float
    """The same distance between two halves of the evaluation text."""
    worst: str
    """The layer whose input differs most."""
    largest: float
    """Its distance."""
    fourfold: float
    """Share of its channels whose mean squares differ four times or more."""
    experts: int = 0
    unseen: int = 0
    """Experts that no token of the set reached."""

    @property
    def key(self) -> CalibratedKey:
        """The set and the text that it is about, of no method."""
        return CalibratedKey("", self.set, self.seq_len, self.samples, self.text)


class CalibrationScore(Fact, frozen=True, gc=False, kw_only=True):
    """A method calibrated on some windows of a set: all layers of the body, on one text."""

    set: str
    text: str
    method: str
    """The format of every layer of the body."""
    seq_len: int
    samples: int
    """Windows of the set that it may use; of a half, those of the whole."""
    part: CalibratedOn = ""
    nll: float
    ppl: float
    nll_reference: float
    """Of the unchanged model."""
    kl: float
    kl_se: float
    top1: float
    tokens: int
    kls: tuple[float, ...]
    """KL of each evaluation window, in nats per token: what two sets do is compared by them."""

    @property
    def key(self) -> CalibratedKey:
        """What it is the score of."""
        return CalibratedKey(
            self.method, self.set, self.seq_len, self.samples, self.text, self.part
        )


class Continued(Fact, frozen=True, gc=False, kw_only=True):
    """One prompt, continued by the reference and by a recipe, with the same random numbers."""

    prompt: str
    """Key of the prompt: hash of its tokens, and of how it was continued."""
    recipe: str
    """Hash of the recipe."""
    id: str
    """What the prompt is called."""
    text: str
    """The prompt as given; a chat as its template writes it."""
    rephrases: str = ""
    """The ``id`` of a prompt that asks for the same in other words."""
    topic: str = ""
    sampling: Sampling
    prompt_tokens: int
    reference: Continuation
    changed: Continuation
    """By the recipe."""
    first: int = -1
    """Number of the first token that differs; -1 where none does."""
    pieces: tuple[str, str] = ("", "")
    """The tokens there, as text: the reference's, the recipe's."""
    reference_top: tuple[Choice, ...] = ()
    """The reference's most likely tokens there."""
    changed_top: tuple[Choice, ...] = ()
    """The recipe's most likely tokens there."""
    kl: float = float("nan")
    """KL of the recipe from the reference over the recipe's continuation, nats per token."""


class SymptomRestored(Fact, frozen=True, gc=False, kw_only=True):
    """What giving layers of a recipe back wins on the texts that show a symptom."""

    recipe: str
    """Hash of the recipe."""
    prompts: str
    """Key of the texts: hash of the prompts and of what the recipe wrote."""
    unit: str
    """Name of the layer; or ``block 3``, ``block 3 self_attn``."""
    layers: tuple[str, ...]
    by: RestoredBy
    kl: float
    """By how much KL from the reference falls on them, nats per token; mean over texts."""
    kl_se: float
    """Over texts; nan of one."""
    whole: float
    """KL of the whole recipe on them."""
    texts: int
    zeroed: float = 0.0
    """Share of their weights that are in rows which the recipe makes all zero."""
    nonfinite: float = 0.0
    """Share of their weights that are NaN or infinite in the recipe."""


class SymptomCure(Fact, frozen=True, gc=False, kw_only=True):
    """Prompts that show a symptom, continued again with layers of the recipe given back."""

    recipe: str
    prompts: str
    """See `SymptomRestored`."""
    layers: tuple[str, ...]
    """Those given back, the one that wins most first."""
    failing: int
    """Prompts."""
    left: int
    """Of them, those that still show a symptom that the reference does not."""


class SymptomContrast(Fact, frozen=True, gc=False, kw_only=True):
    """Prompts that show a symptom against prompts that do not: what differs inside the model.

    On each prompt with what the reference wrote after it: a text without the recipe's symptom.
    """

    recipe: str
    prompts: str
    """See `SymptomRestored`."""
    failing: int
    """Prompts that show a symptom which the reference does not."""
    healthy: int
    """Prompts on which neither fails; without any there are layers and heads by size alone."""
    reference_fails: int = 0
    """Prompts that are left out, since the reference fails on them by itself."""
    channels: tuple[ContrastedChannel, ...] = ()
    """Those that differ most, first."""
    layers: tuple[ContrastedLayer, ...] = ()
    heads: tuple[ContrastedHead, ...] = ()
    why: str = ""
    """Why something could not be compared; empty if all was."""


class Baseline(Fact, frozen=True, gc=False):
    """The score of the unchanged model."""

    nll: float
    nll_se: float
    ppl: float
    tokens: int


class Control(Fact, frozen=True, gc=False):
    """A no-op: a layer swapped for itself, and the floor: what rounding alone measures."""

    layer: str
    max_abs_dnll: float
    """0 on a CPU; elsewhere about the floor at most."""
    max_abs_kl: float
    floor_dnll: float = 0.0
    """Largest difference in any window between evaluations that are mathematically the same but
    round differently: sums in another order, 16-bit layer inputs rounded once more, and off a CPU
    the same run repeated. A figure below it says nothing."""
    floor_kl: float = 0.0


class Sensitivity(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer: changed alone, or for restore, kept alone while all others change.

    Degrade: the network with the layer changed, against the reference. Restore: the network with
    the whole body changed, minus the same network with this layer restored. A layer that hurts has
    positive figures in both directions.
    """

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    """Over windows; for restore, over the windows' differences."""
    dnll: float
    dnll_se: float
    dppl: float
    """Perplexity with the change minus without; for restore ``exp(nll) − exp(nll − dnll)``, where
    ``nll`` is that of the whole body changed."""
    dppl_low: float
    dppl_high: float
    tokens: int
    """Targets behind the figures; fewer than the protocol has if fewer were enough."""
    by: By = "layer"
    """What was changed at once. Unless ``layer``, the field ``layer`` holds a block number, a kind,
    or the first layer of a fused group."""
    top1: float = float("nan")
    """Share of positions where both models have the same top token; for restore, the reference and
    the network with the layer restored."""

    @property
    def key(self) -> EffectKey:
        """The effects it belongs to."""
        return EffectKey(self.direction, self.format, self.by)


class Estimate(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer changed alone, estimated from gradients, not measured."""

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    dnll: float
    dnll_se: float
    tokens: int
    draws: int = 1
    """Draws of labels from the model's own distribution."""
    by: By = "layer"
    doubt: str = ""
    """Why the estimate may be wrong, such as an effect too large for a quadratic; empty if
    trusted."""

    @property
    def key(self) -> EffectKey:
        """The effects it belongs to."""
        return EffectKey(self.direction, self.format, self.by)


class RecipeScore(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of a whole recipe. Also sent while incomplete, with ``done=False``."""

    recipe: str
    """Hash of the layers that are not kept, with their formats."""
    nll: float
    ppl: float
    ppl_low: float
    ppl_high: float
    dnll: float
    dnll_se: float
    kl: float
    kl_se: float
    top1: float
    tokens: int
    bits_per_weight: float
    """Stored bits per weight of the body."""
    bytes: int
    """Size of the whole artefact."""
    bits_all: float = 0.0
    """Stored bits per weight of every layer, head and embedding among them; the weights of a tied
    pair count once. 0 in facts of an earlier version."""
    done: bool = True
    calibration: Literal["", "sequential"] = ""
    """``sequential`` if methods used the outputs of the quantised blocks before; empty without
    them."""


class Additivity(Fact, frozen=True, gc=False, kw_only=True):
    """Effect of all body layers together over the sum of their single effects.

    For restore, a single effect is what restoring that layer alone regains.
    """

    format: str
    direction: Direction = "degrade"
    layers: int
    kl: float
    dnll: float
    together_kl: float
    sum_kl: float

    @property
    def key(self) -> EffectKey:
        """The effects it belongs to."""
        return EffectKey(self.direction, self.format)


class FurtherEstimate(Fact, frozen=True, gc=False, kw_only=True):
    """What a further change of one layer adds to a recipe, estimated from gradients there.

    Effects of single layers are those at the unchanged model; a plan also needs those at the recipe
    it found. A session does not keep them.
    """

    layer: str
    format: str
    """That the layer takes instead of its format in the recipe; a kept format for as stored."""
    recipe: str
    """Hash of the recipe."""
    kl: float
    """Change of the recipe's KL, negative for an improvement."""
    kl_se: float


class Swap(msgspec.Struct, frozen=True, gc=False):
    """Two layers of one shape, each of which fits the partner of the other."""

    layer: str
    other: str
    fits: float
    """The lesser correlation of one's norms with those of the other's partner."""
    own: float
    """The greater correlation with those of its own."""
    partner: str = ""
    """Kind of the partner, if that may have been swapped instead."""


class Swapped(Fact, frozen=True, gc=False):
    """Layers of a checkpoint that seem to be swapped."""

    swaps: tuple[Swap, ...] = ()


AnyFact: TypeAlias = (
    LayerWeights
    | LayerError
    | Baseline
    | Control
    | Sensitivity
    | Estimate
    | RecipeScore
    | Additivity
    | FurtherEstimate
    | LayerActivations
    | LayerRanges
    | FormatTried
    | Swapped
    | OutputError
    | Drift
    | StoredLayer
    | ArtefactLayer
    | ArtefactScore
    | ArtefactTable
    | LayerRestored
    | Likelihoods
    | RecipeTable
    | RecipeOnText
    | CalibrationCheck
    | CalibrationScore
    | Continued
    | SymptomRestored
    | SymptomCure
    | SymptomContrast
)
