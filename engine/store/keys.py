"""Keys of facts: what each kind of fact depends on, declared once.

A fact is stored under the hash of everything its value depends on, so any session that needs the
same measurement finds it, and it is never mistaken for another. One `Key` class per kind of fact
lists these parts as typed fields: leaving one out is a type error, not a wrong figure. Budgets,
micro-batches and threads are in no key: they change the last bits at most.

To change the arithmetic of a measurement, raise its version below: older facts are then not found
and are measured again. To add a kind of fact, subclass `Key`. To add a part to a kind that exists,
give it a default: a field at its default is not hashed, so the older facts are still found.

The hash of a key is that of its parts as JSON with sorted names, as in the version before this
module existed, so stores written by that version stay valid. The one exception is triage, which had
one fact per layer for an ordered list of formats: `ListedWeights` finds such facts, and triage
splits them into the new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from engine import protocol as p

MEASURE_VERSION = 1
"""Version of every measurement."""
QUANTISER_VERSION = 1
"""Version of the arithmetic of formats and methods."""
STATISTICS_VERSION = 3
"""Version of the statistics of weights: what they hold."""
ESTIMATOR_VERSION = 3
"""Version of the estimates from gradients."""

CALIBRATING_VERSION = 2
"""Version of what is told of calibration sets, and of what is calibrated on them. Version 1 added
up statistics in an order that depended on the numbers of samples asked for."""
GENERATION_VERSION = 1
"""Version of continuing prompts, and of what is told of them."""

MEASURED: Mapping[str, Any] = {"version": MEASURE_VERSION}
QUANTISED: Mapping[str, Any] = {**MEASURED, "quantiser": QUANTISER_VERSION}


class Files(msgspec.Struct, frozen=True, rename={"fingerprint": "checkpoint"}):
    """The files that a fact is about."""

    fingerprint: str
    """Hash of the checkpoint's weights and configuration."""
    code: str = ""
    """Hash of the Python code that came with the checkpoint, where it was trusted."""


class Evaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The files and the windows that a fact was measured on."""

    files: Files
    protocol: Mapping[str, Any]
    """How the text was cut and the arithmetic; see `evaluation`."""
    windows: str
    """Hash of the windows' tokens."""
    uses: Mapping[str, tuple[int, ...]] = {}
    """Where layers act that do not act where their names say; see `Network.unlike_names`. Such
    models were once measured as if they did."""


def evaluation(
    files: Files,
    protocol: p.Protocol,
    windows: str,
    uses: Mapping[str, tuple[int, ...]] | None = None,
) -> Evaluation:
    """The part of a key that describes the evaluation.

    The tokens stand for the text, so its name, its hash and its rows are not part of the key, nor
    is whether blocks were streamed. Facts
    that depend on the random labels of estimates add them themselves. Of the device only its kind
    counts.
    """
    parts = msgspec.to_builtins(protocol)
    for name in ("text", "text_sha256", "column", "documents", "skipped", "draws", "streamed"):
        parts.pop(name, None)
    parts["device"] = protocol.device.split(":")[0]
    return Evaluation(files, parts, windows, uses or {})


class Calibration(msgspec.Struct, frozen=True, omit_defaults=True):
    """The calibration text that methods used."""

    text: str
    """Hash of the text; empty if an importance matrix is all that they used."""
    windows: str
    """Hash of the windows' tokens."""
    tokens: int
    seq_len: int
    seed: int
    mode: str
    """``reference`` or ``sequential``: which model's inputs were used."""
    imatrix: str = ""
    """Hash of the importance matrix that was read from a file."""
    scales: Literal["", "powers of two"] = ""
    """How scales were chosen that another layer absorbs, if there are any. Earlier versions chose
    them freely, which left out how that layer's own rounding changes."""


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of a fact's key.

    A field at its default is left out; see the module's docstring.
    """

    on: Files | Evaluation
    """What was measured; and on which windows, if the model ran."""
    kind: ClassVar[str]
    constants: ClassVar[Mapping[str, Any]] = MEASURED
    """Versions, and other parts that all facts of the kind share."""

    @property
    def address(self) -> str:
        """The hash under which the fact is stored."""
        parts = msgspec.to_builtins(self)
        on = parts.pop("on")
        on |= on.pop("files", {})
        whole = {"kind": self.kind, **self.constants, **on, **parts}
        return hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()


# --- of the files alone --------------------------------------------------------------------------


class WeightStatistics(Key, frozen=True, kw_only=True):
    """Statistics of one layer's weights."""

    kind = "weight statistics"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "statistics": STATISTICS_VERSION}
    on: Files
    layer: str
    sigma: float


class WeightError(Key, frozen=True, kw_only=True):
    """The error of one layer's weights in one format."""

    kind = "weight error"
    constants = QUANTISED
    on: Files
    layer: str
    format: str
    scale_dtype: str


class Ranges(Key, frozen=True, kw_only=True):
    """Errors of one layer's weights in several group sizes and clipped ranges."""

    kind = "ranges"
    constants = QUANTISED
    on: Files
    layer: str
    format: str
    groups: tuple[int, ...]
    """0 for a whole row."""
    ratios: tuple[float, ...]
    scale_dtype: str


class Swapped(Key, frozen=True, kw_only=True):
    """Layers that seem to be swapped."""

    kind = "swapped"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "statistics": STATISTICS_VERSION}
    on: Files


class ListedWeights(Key, frozen=True, kw_only=True):
    """Statistics and errors in a list of formats, as the previous version stored them."""

    kind = "weights"
    constants = QUANTISED
    on: Files
    layer: str
    formats: tuple[str, ...]
    sigma: float
    scale_dtype: str


# --- of the model on the evaluation windows ------------------------------------------------------


class Baseline(Key, frozen=True, kw_only=True):
    """The score of the unchanged model."""

    kind = "baseline"
    on: Evaluation


class Control(Key, frozen=True, kw_only=True):
    """What a no-op measures."""

    kind = "control"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "floor": "rounded otherwise"}
    on: Evaluation


class Estimate(Key, frozen=True, kw_only=True):
    """The effect of one layer in one format, estimated from gradients."""

    kind = "estimate"
    constants: ClassVar[Mapping[str, Any]] = {**QUANTISED, "estimator": ESTIMATOR_VERSION}
    on: Evaluation
    layer: str
    format: str
    together: tuple[str, ...]
    """Formats that are multiplied together, in alphabetical order: products of other shapes round
    differently."""
    direction: p.Direction
    draws: int
    seed: int
    scale_dtype: str
    calibration: Calibration | None = None
    effort: str = ""
    """How many windows, if not all."""


class Sensitivity(Key, frozen=True, kw_only=True):
    """The measured effect of one unit in one format."""

    kind = "sensitivity"
    constants = QUANTISED
    on: Evaluation
    layer: str
    """Name of the unit."""
    format: str
    direction: p.Direction
    scale_dtype: str
    by: p.By = "layer"
    layers: tuple[str, ...] = ()
    """For units other than a layer."""
    effort: str = ""
    """What the figure was measured for, if not on all windows."""
    calibration: Calibration | None = None


class RecipeScore(Key, frozen=True, kw_only=True):
    """The score of a recipe."""

    kind = "recipe"
    constants = QUANTISED
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    weights: Literal["", "body"] = ""
    """Whose bits per weight it has: ``body`` if head or embedding are quantised, which facts of
    earlier versions counted too."""
    calibration: Calibration | None = None


class Additivity(Key, frozen=True, kw_only=True):
    """How far single effects add up to the effect of all together."""

    kind = "additivity"
    constants = QUANTISED
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    direction: p.Direction = "degrade"
    fewer: int = 0
    """Tokens behind the single effects, if some were not measured on all windows."""
    calibration: Calibration | None = None


class FurtherEstimate(Key, frozen=True, kw_only=True):
    """What a further change of one layer adds to a recipe."""

    kind = "further estimate"
    constants: ClassVar[Mapping[str, Any]] = {**QUANTISED, "estimator": ESTIMATOR_VERSION}
    on: Evaluation
    recipe: Mapping[str, str]
    layer: str
    format: str
    together: tuple[str, ...]
    """As of an `Estimate`."""
    draws: int
    seed: int
    scale_dtype: str
    calibration: Calibration | None = None


class OutputError(Key, frozen=True, kw_only=True):
    """The error of one layer's outputs in one format."""

    kind = "output error"
    constants = QUANTISED
    on: Evaluation
    layer: str
    format: str
    scale_dtype: str
    tokens: int
    """Of the first windows that it was measured on."""
    recipe: Mapping[str, str] = {}
    """That it belongs to, if the format's methods use what it makes of the blocks before."""
    calibration: Calibration | None = None


class Drift(Key, frozen=True, kw_only=True):
    """How a recipe's error grows from block to block."""

    kind = "drift"
    constants = QUANTISED
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    tokens: int
    seed: int
    """Of the control's noise."""
    calibration: Calibration | None = None


class Activations(Key, frozen=True, kw_only=True):
    """What one layer is given and returns."""

    kind = "activations"
    on: Files
    layer: str
    dtype: str
    device: str
    """Its kind."""
    calibration: Calibration
    modules: bool = False
    """Whether outputs of attention and MLP modules are told too; earlier facts have none."""


class RecipeTable(Key, frozen=True, kw_only=True):
    """A recipe against the reference, position by position."""

    kind = "recipe table"
    constants = QUANTISED
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    calibration: Calibration | None = None


class RecipeOnText(Key, frozen=True, kw_only=True):
    """A recipe on one evaluation text, and by position in its windows."""

    kind = "recipe on text"
    constants = QUANTISED
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    calibration: Calibration | None = None
    text: str
    """As it was asked for, which the fact says."""


class Likelihoods(Key, frozen=True, kw_only=True):
    """How likely some continuations are."""

    kind = "likelihoods"
    constants = QUANTISED
    on: Files
    dtype: str
    device: str
    """Its kind."""
    pairs: str
    """Hash of their tokens and of those before them."""
    recipe: Mapping[str, str] = {}
    """Empty for the reference."""
    scale_dtype: str = ""
    calibration: Calibration | None = None


class FormatTried(Key, frozen=True, kw_only=True):
    """One layer in one format, on calibration inputs of the unchanged model."""

    kind = "format tried"
    constants = QUANTISED
    on: Files
    layer: str
    format: str
    dtype: str
    device: str
    """Its kind."""
    scale_dtype: str
    calibration: Calibration


class StoredLayer(Key, frozen=True, kw_only=True):
    """One layer of a finished checkpoint, by itself."""

    kind = "stored layer"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "comparison": p.COMPARISON_VERSION}
    on: Files
    """The finished checkpoint."""
    layer: str
    refused: str = ""
    """Why it could not be read."""


class ArtefactLayer(Key, frozen=True, kw_only=True):
    """One layer of a finished checkpoint, against its original."""

    kind = "artefact layer"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "comparison": p.COMPARISON_VERSION}
    on: Files
    artefact: str
    """Fingerprint of the finished checkpoint."""
    layer: str
    norms: bool = False
    """Whether the original's norms told which scales were folded into it."""
    refused: str = ""
    """Why it could not be compared."""


class ArtefactScore(Key, frozen=True, kw_only=True):
    """The score of a finished checkpoint."""

    kind = "artefact"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "comparison": p.COMPARISON_VERSION}
    on: Evaluation
    artefact: str


class ArtefactTable(Key, frozen=True, kw_only=True):
    """A finished checkpoint against a file of probabilities."""

    kind = "artefact table"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "comparison": p.COMPARISON_VERSION}
    on: Files
    """The finished checkpoint."""
    logits: str
    """SHA-256 of the file."""
    dtype: str
    device: str
    original: str = ""
    """Fingerprint of the original that decided how it is read, if there was one."""


class LayerRestored(Key, frozen=True, kw_only=True):
    """What giving one layer of a finished checkpoint back its original weight wins."""

    kind = "layer restored"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "comparison": p.COMPARISON_VERSION}
    on: Evaluation
    artefact: str
    layer: str


class CalibrationCheck(Key, frozen=True, kw_only=True):
    """What is told of a calibration set and an evaluation text."""

    kind = "calibration check"
    constants: ClassVar[Mapping[str, Any]] = {**MEASURED, "calibrating": CALIBRATING_VERSION}
    on: Evaluation
    calibration: Calibration
    layers: tuple[str, ...]
    """Whose inputs are looked at, one for each input."""
    named: p.CalibratedKey | None = None
    """What a later command calls it; not set under the names that it was found under first."""


class CalibrationScore(Key, frozen=True, kw_only=True):
    """The score of a method calibrated on a set, all statistics being the unchanged model's."""

    kind = "calibration score"
    constants: ClassVar[Mapping[str, Any]] = {**QUANTISED, "calibrating": CALIBRATING_VERSION}
    on: Evaluation
    recipe: Mapping[str, str]
    scale_dtype: str
    calibration: Calibration
    named: p.CalibratedKey | None = None
    """What a later command calls it; not set under the names that it was measured under."""


class Continued(Key, frozen=True, kw_only=True):
    """One prompt, continued by the reference and by a recipe.

    Which prompts were continued together is no part of it: as any size of batch, it changes the
    last bits of logits, and a token where two are as likely.
    """

    kind = "continued"
    constants: ClassVar[Mapping[str, Any]] = {**QUANTISED, "generation": GENERATION_VERSION}
    on: Files
    recipe: Mapping[str, str]
    scale_dtype: str
    dtype: str
    device: str
    """Its kind."""
    prompt: str
    """Hash of its tokens, and of how it is continued."""
    id: str
    rephrases: str = ""
    topic: str = ""
    calibration: Calibration | None = None


class SymptomRestored(Key, frozen=True, kw_only=True):
    """What giving layers of a recipe back wins on texts that show a symptom."""

    kind = "symptom restored"
    constants: ClassVar[Mapping[str, Any]] = {**QUANTISED, "generation": GENERATION_VERSION}
    on: Files
    recipe: Mapping[str, str]
    scale_dtype: str
    dtype: str
    device: str
    """Its kind."""
    prompts: str
    """Hash of the texts."""
    layers: tuple[str, ...]
    calibration: Calibration | None = None


class SymptomContrast(SymptomRestored, frozen=True, kw_only=True):
    """Prompts that show a symptom against others; of no layers."""

    kind = "symptom contrast"
    others: str
    """Hash of the prompts that show none, and of what the reference wrote after all of them."""


class SymptomCure(SymptomRestored, frozen=True, kw_only=True):
    """Prompts continued again with layers of a recipe given back."""

    kind = "symptom cure"
