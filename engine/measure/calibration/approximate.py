"""What a layer computes with in a format: the weight that the artefact dequantises to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import read_layer
from engine.errors import FormatError
from engine.formats.grammar import FOLDED, Format, folds, needs_calibration, why_not_alone
from engine.measure.calibration.block_inputs import BlockInputs, Events, ForExport, RecipeInputs
from engine.measure.calibration.calibration import Calibration, need_calibration
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
from engine.model.inputs import why_not_gathered, why_unseen
from engine.model.network import Compact, Held, StandIn
from engine.quant.methods.channel_scales import folded, only_weights
from engine.quant.packed import packed
from engine.quant.quantize import dequantized, stored_form
from engine.quant.stored import stored_bytes
from engine.workspace import Loaded


def approximated(
    loaded: Loaded,
    layer: str,
    format: Format,
    counts: JobCounts,
    recipe: RecipeInputs | None = None,
    *,
    compact: bool = False,
) -> Events[Held]:
    """What a layer computes with in a format; yields while the calibration inputs are gathered.

    Methods that need inputs get those of the unchanged network. With a recipe they get the outputs
    of the blocks before as the recipe quantises them, so those blocks are quantised first.

    Args:
        loaded: the model.
        layer: a name.
        format: the format to quantise to.
        counts: of the job.
        recipe: contains the layer and its format; from `recipe_inputs`.
        compact: whether to keep the stored form instead of ``Ŵ``, where no method needs inputs.

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
    calibration = yield from need_calibration(loaded)
    start = network.layers[layer].start
    states = calibration.reference if recipe is None else recipe.of(start)
    key = (layer, str(format), states.prefix)
    wanted = None if recipe is None else recipe.for_export
    known = calibration.solved.get(key)
    if known is not None and (wanted is None or wanted.has(layer, format)):
        return known
    for name in [] if recipe is None else recipe.unsettled(start):
        assert recipe is not None
        before = yield from approximated(loaded, name, recipe.formats[name], counts, recipe)
        recipe.settled[name] = before
        yield None
    inputs = yield from calibration.inputs(layer, states, counts)
    scaling = yield from _scaling(loaded, calibration, layer, format, inputs, states, counts)
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)

    def solved() -> Solution:
        stored = _stored(loaded, layer).to(network.device)
        return solve(stored, inputs, format, scaling, scale_dtype, layer)

    solution = counts.timed("quantize_s", solved)()
    weight = solution.weight.to(network.dtype)
    held = weight if solution.inputs is None else StandIn(weight, solution.inputs)
    calibration.solved.keep(key, held, weight.nbytes)
    calibration.columns[key] = solution.columns
    if wanted is not None and solution.form is not None:
        wanted.forms[layer] = solution.form.on(torch.device("cpu"))
    if wanted is not None and scaling is not None:
        wanted.scales[layer] = scaling.scale.cpu()
    for note in solution.notes:
        if note not in calibration.said:
            calibration.said.add(note)
            yield p.Notice("info", note)
    return held


def recipe_inputs(loaded: Loaded, formats: Mapping[str, Format]) -> Events[RecipeInputs | None]:
    """Where inputs come from in a recipe; None if none of its formats needs them."""
    network = loaded.network
    if not any(map(needs_calibration, formats.values())):
        return None
    calibration = yield from need_calibration(loaded)
    return RecipeInputs(calibration.reference, network, calibration.batches, formats)


def solved_codes(
    loaded: Loaded, formats: Mapping[str, Format], counts: JobCounts
) -> Events[ForExport]:
    """The codes and scales that methods find for a recipe's layers: those it is scored with.

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
    if recipe is None:
        return ForExport()
    found = ForExport()
    recipe.for_export, recipe.forgets = found, True
    wanted = [name for name in formats if needs_calibration(formats[name])]
    network = loaded.network
    wanted.sort(key=lambda name: network.layers[name].start)
    stage = counts.stage("calibrating", len(wanted))
    for done, name in enumerate(wanted):
        yield stage.step(done, name, str(formats[name]))
        held = yield from approximated(loaded, name, formats[name], counts, recipe)
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
    if why_not_alone(format) is not None and (why := why_unseen(network, layer)) is not None:
        return f"{why}, and {format} needs them"
    if needs_calibration(format) and (why := why_not_gathered(network, layer)) is not None:
        return f"{why}, and {format} needs those of one place"
    if not folds(format):
        return None
    why = fold_groups(network)[layer].why_not
    return f"{why}, so nothing absorbs the scale of {format}" if why else None


def _scaling(
    loaded: Loaded,
    calibration: Calibration,
    layer: str,
    format: Format,
    inputs: LayerInputs,
    states: BlockInputs,
    counts: JobCounts,
) -> Events[Scaling | None]:
    """The combined scale of the layer's fold group for all methods that need one; None without any.

    It is shared by all weights with this input, each quantised to this layer's format.
    """
    wanted = [each for each in format.methods if each.name in FOLDED]
    if not wanted:
        return None
    network = calibration.network
    group = fold_groups(network)[layer] if folds(format) else None
    layers = calibration.shares[layer] if group is None else group.layers
    key = (layers, str(format), states.prefix)
    if (known := calibration.scalings.get(key)) is not None:
        return known
    scale_dtype: torch.dtype = getattr(torch, loaded.scale_dtype)
    device = inputs.statistics.gram.device
    scale = torch.ones(inputs.statistics.width, device=device)
    at_once, gain = scale, scale
    stored: torch.dtype = getattr(torch, loaded.opened.checkpoint.dtype)
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
    calibration.scalings.keep(key, scaling, 8 * len(scale))
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
