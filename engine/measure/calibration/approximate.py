"""What a layer computes with in a format: the weight that the artefact dequantises to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import read_layer
from engine.errors import FormatError
from engine.formats.grammar import (
    FOLDED,
    Format,
    folds,
    needs_calibration,
    weighs_alone,
    why_not_alone,
)
from engine.measure.calibration.block_inputs import Events, RecipeInputs
from engine.measure.calibration.calibration import Calibration, Kept, need_calibration
from engine.measure.calibration.importance import from_file, gathers, need_importances, weighs
from engine.measure.calibration.solve import (
    LayerInputs,
    Scaling,
    Solution,
    find_scale,
    method,
    rounded_inputs,
    scaled_inputs,
    solve,
)
from engine.measure.counts import JobCounts
from engine.model.fold_groups import fold_groups
from engine.model.inputs import shared_inputs, why_not_gathered, why_unseen
from engine.model.network import Compact, Held, StandIn
from engine.quant.methods.channel_scales import folded, only_weights
from engine.quant.methods.gptq import Solved
from engine.quant.packed import packed
from engine.quant.quantize import dequantized, stored_form
from engine.quant.stored import stored_bytes
from engine.workspace import Loaded


@dataclass
class ForExport:
    """What an export stores of the layers that were solved, in main memory."""

    forms: dict[str, Solved] = field(default_factory=dict)
    """The codes that inputs decide."""
    scales: dict[str, Tensor] = field(default_factory=dict)
    """``s``, float32 ``[in]``, of layers whose input channels ``+awq`` or ``+smooth`` scale: codes
    are those of ``W · diag(s)``."""

    def has(self, layer: str, format: Format) -> bool:
        """Whether everything is known that this layer's format needs."""
        return (layer in self.forms or not _stores_codes(format)) and (
            layer in self.scales or not folds(format)
        )

    def take(self, layer: str, solution: Solution, scaling: Scaling | None) -> None:
        """Add what a layer was solved to."""
        if solution.form is not None:
            self.forms[layer] = solution.form.on(torch.device("cpu"))
        if scaling is not None:
            self.scales[layer] = scaling.scale.cpu()


def approximated(
    loaded: Loaded,
    layer: str,
    format: Format,
    counts: JobCounts,
    recipe: RecipeInputs | None = None,
    *,
    compact: bool = False,
    store: ForExport | None = None,
) -> Events[Held]:
    """What a layer computes with in a format; yields while the calibration inputs are gathered.

    Methods that need inputs get those of the unchanged network. With a recipe they get the outputs
    of the blocks before as the recipe quantises them, so those blocks are quantised first; but
    ``+imatrix`` always weighs by the inputs of the unchanged network, as llama.cpp does.

    Args:
        loaded: the model.
        layer: a name.
        format: the format to quantise to.
        counts: of the job.
        recipe: contains the layer and its format; from `recipe_inputs`.
        compact: whether to keep the stored form instead of ``Ŵ``, where no method needs inputs.
        store: what an export stores of the layer is added here, if that is wanted.

    Raises:
        FormatError: see `approximation`; or nothing absorbs the scale that the format needs, or a
            method cannot use the inputs.
        TextError: the calibration text cannot be read.
    """
    network = loaded.network
    if (why := why_not_given(loaded, layer, format)) is not None:
        raise FormatError(f"{layer}: {why}")
    if not needs_calibration(format):
        weights = only_weights(format)
        plain = method(format, "a8") is None
        make = compacted if compact and plain and not weights.kept else approximation
        weight = counts.timed("quantize_s", lambda: make(loaded, layer, weights))()
        if plain:
            return weight
        assert isinstance(weight, Tensor)
        rotated = method(format, "hadamard") is not None
        return StandIn(weight, rounded_inputs(rotated=rotated))
    given = None
    if weighs([format]) and (importances := (yield from need_importances(loaded))) is not None:
        given = importances.of(layer).to(network.device)
    if from_file(loaded, format):
        by_file = counts.timed(
            "quantize_s", partial(_by_importance, loaded, layer, format, given)
        )()
        if store is not None:
            store.take(layer, by_file, None)
        return by_file.weight.to(network.dtype)
    calibration = yield from need_calibration(loaded)
    start = network.layers[layer].start
    before = None if weighs_alone(format) else recipe
    states = calibration.reference if before is None else before.of(start)
    key = (layer, str(format), states.prefix)
    known = calibration.solved.get(key)
    if known is not None and (store is None or store.has(layer, format)):
        return known
    for name in [] if before is None else before.unsettled(start):
        assert before is not None
        earlier = before.formats[name]
        settled = yield from approximated(loaded, name, earlier, counts, before, store=store)
        before.settled[name] = settled
        yield None
    inputs = yield from calibration.inputs(layer, states, counts)
    scalings = calibration.scalings
    solution, scaling = yield from solved_from(
        loaded, layer, format, inputs, scalings, counts, states.prefix, given
    )
    weight = solution.weight.to(network.dtype)
    held = held_of(solution, weight)
    calibration.solved.keep(key, held, weight.nbytes)
    calibration.columns[key] = solution.columns
    if store is not None:
        store.take(layer, solution, scaling)
    for note in solution.notes:
        if note not in calibration.said:
            calibration.said.add(note)
            yield p.Notice("info", note)
    return held


def solved_from(
    loaded: Loaded,
    layer: str,
    format: Format,
    inputs: LayerInputs,
    scalings: Kept[Scaling],
    counts: JobCounts,
    prefix: str = "",
    given: Tensor | None = None,
) -> Events[tuple[Solution, Scaling | None]]:
    """Quantise a layer, given its inputs.

    Args:
        loaded: the model.
        layer: a name.
        format: whose methods need inputs.
        inputs: of the layer.
        scalings: of fold groups, where one that was found for another layer of it is taken.
        counts: of the job.
        prefix: identifies what the inputs are of, among those scales.
        given: the importance of inputs, instead of that of ``inputs``.

    Raises:
        FormatError: see `solve`.
    """
    scaling = yield from _scaling(loaded, scalings, layer, format, inputs, prefix, counts)
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)

    def solved() -> Solution:
        stored = _stored(loaded, layer).to(loaded.network.device)
        return solve(stored, inputs, format, scaling, scale_dtype, layer, given)

    return counts.timed("quantize_s", solved)(), scaling


def held_of(solution: Solution, weight: Tensor) -> Held:
    """What a layer holds once it is solved; ``weight`` is the solution's in the network's dtype."""
    return weight if solution.inputs is None else StandIn(weight, solution.inputs)


def _by_importance(loaded: Loaded, layer: str, format: Format, given: Tensor | None) -> Solution:
    """A layer weighed by what a file has of its inputs."""
    stored = _stored(loaded, layer).to(loaded.network.device)
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)
    return solve(stored, None, format, None, scale_dtype, layer, given)


def _stores_codes(format: Format) -> bool:
    """Whether inputs decide codes that an export stores."""
    return method(format, "gptq") is not None or method(format, "imatrix") is not None


def recipe_inputs(loaded: Loaded, formats: Mapping[str, Format]) -> Events[RecipeInputs | None]:
    """Where inputs come from in a recipe; None if none of its formats needs them."""
    network = loaded.network
    if not any(gathers(loaded, each) for each in formats.values()):
        return None
    calibration = yield from need_calibration(loaded)
    return RecipeInputs(calibration.reference, network, calibration.batches, formats)


def solved_codes(
    loaded: Loaded, formats: Mapping[str, Format], counts: JobCounts
) -> Events[ForExport]:
    """The codes and scales that methods find for the layers of a recipe, for the weights it is
    scored with.

    Layers are solved in the order of the blocks, each on the outputs of the quantised blocks
    before. Codes are in main memory, one byte per weight.

    Args:
        loaded: the model.
        formats: the recipe.
        counts: of the job.

    Raises:
        FormatError: see `approximated`.
        TextError: the calibration text cannot be read.
    """
    recipe = yield from recipe_inputs(loaded, formats)
    found = ForExport()
    if recipe is not None:
        recipe.forgets = True
    wanted = [name for name in formats if needs_calibration(formats[name])]
    network = loaded.network
    wanted.sort(key=lambda name: network.layers[name].start)
    stage = counts.stage("calibrating", len(wanted))
    for done, name in enumerate(wanted):
        yield stage.step(done, name, str(formats[name]))
        held = yield from approximated(loaded, name, formats[name], counts, recipe, store=found)
        if recipe is not None:
            recipe.settled[name] = held
    return found


def columns_kept(loaded: Loaded, recipe: RecipeInputs | None) -> dict[str, int]:
    """Input channels that ``+outlier`` keeps in 16 bits in a recipe's layers, once solved."""
    network, calibration = loaded.network, loaded.find(Calibration)
    if recipe is None or calibration is None:
        return {}
    return {
        name: calibration.columns.get(
            (name, str(format), recipe.of(network.layers[name].start).prefix), 0
        )
        for name, format in recipe.formats.items()
        if method(format, "outlier") is not None
    }


def why_not_given(loaded: Loaded, layer: str, format: Format) -> str | None:
    """Why a layer's inputs rule out a format that its shape allows; None if they do not."""
    network = loaded.network
    if network.layers[layer].role == "embedding":
        why = why_not_alone(format)
        return why and f"{why}, and an embedding is a lookup: it multiplies no inputs"
    if from_file(loaded, format):
        return None
    if why_not_alone(format) is not None and (why := why_unseen(network, layer)) is not None:
        return f"{why}, and {format} needs them"
    if gathers(loaded, format) and (why := why_not_gathered(network, layer)) is not None:
        return f"{why}, and {format} needs those of one place"
    if not folds(format):
        return None
    why = fold_groups(network)[layer].why_not
    return f"{why}, so nothing absorbs the scale of {format}" if why else None


def _scaling(
    loaded: Loaded,
    scalings: Kept[Scaling],
    layer: str,
    format: Format,
    inputs: LayerInputs,
    prefix: str,
    counts: JobCounts,
) -> Events[Scaling | None]:
    """The combined scale of the layer's fold group for all methods that need one; None without any.

    It is shared by all weights with this input, each quantised to this layer's format.
    """
    wanted = [each for each in format.methods if each.name in FOLDED]
    if not wanted:
        return None
    network = loaded.network
    group = fold_groups(network)[layer] if folds(format) else None
    layers = shared_inputs(network)[layer] if group is None else group.layers
    key = (layers, str(format), prefix)
    if (known := scalings.get(key)) is not None:
        return known
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)
    device = inputs.statistics.gram.device
    scale = torch.ones(inputs.statistics.width, device=device)
    at_once, gain = scale, scale
    stored: torch.dtype = getattr(torch, loaded.opened.checkpoint.dtype, torch.float32)
    for each in wanted:
        online = ("online", True) in each.options
        exact = not online and group is not None and group.kind == "layer"

        def find(
            name: str = each.name, scale: Tensor = scale, gain: Tensor = gain, exact: bool = exact
        ) -> Tensor:
            weights = [folded(_stored(loaded, n).to(device), scale) for n in layers]
            there = scaled_inputs(inputs, gain)
            return find_scale(name, weights, there, format, scale_dtype, layer, exact=exact)

        found = counts.timed("quantize_s", find)()
        scale = scale * found
        if online:
            at_once = at_once * found
        gain = 1 / at_once
        if group is not None:
            gain = gain * group.gain(scale / at_once, stored)
        yield None
    offset = None
    if group is not None:
        offset = group.offset(scale / at_once, stored) / at_once
        offset = offset if offset.any() else None
    scaling = Scaling(scale, gain, offset)
    scalings.keep(key, scaling, 8 * len(scale))
    return scaling


def approximation(loaded: Loaded, layer: str, format: Format) -> Tensor:
    """``Ŵ`` of a layer in the network's dtype and on its device, oriented ``[out, in]``.

    Computed from the weights as stored, so that the dtype of the network never changes ``Ŵ``: it is
    only cast at the end.

    Raises:
        FormatError: the format is not built, needs inputs, or cannot hold the layer.
        EngineError: a scale overflows; the message names the layer.
    """
    network = loaded.network
    stored = _stored(loaded, layer)
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)
    approx = dequantized(stored.to(network.device), format, scale_dtype, name=layer)
    return approx.to(network.dtype)


def compacted(loaded: Loaded, layer: str, format: Format) -> Compact:
    """The stored form of a layer, which `approximation` is made from each time it is needed.

    Raises:
        FormatError: as `approximation`; or the format is a kept one.
        EngineError: as `approximation`.
    """
    network = loaded.network
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)
    stored = _stored(loaded, layer).to(network.device)
    form = packed(stored_form(stored, format, scale_dtype, name=layer))
    return Compact(partial(form.approx, network.dtype), tuple(stored.shape), stored_bytes(form))


def _stored(loaded: Loaded, layer: str) -> Tensor:
    """The weight as stored; taken from the network if its dtype holds every stored value."""
    network = loaded.network
    weight = network.weight(layer)
    row = loaded.rows.get(layer)
    if row is None or row.dtype not in ("float32", "float16", "bfloat16"):
        return weight  # dequantised on loading: the network's values are the reference
    stored: torch.dtype = getattr(torch, row.dtype)
    if torch.promote_types(stored, weight.dtype) == weight.dtype:
        return weight
    read = read_layer(loaded.opened.checkpoint, row)
    return torch.nan_to_num(read, nan=0.0, posinf=0.0, neginf=0.0)
