"""What a layer computes with in a format: the weight as the artefact would dequantise it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import read_layer
from engine.errors import FormatError
from engine.measure.account import Account
from engine.measure.calibration import Calibration, need_calibration
from engine.measure.calibration_states import Events, RecipeStates, States
from engine.measure.solving import (
    LayerInputs,
    Scaling,
    Solution,
    find_scale,
    method,
    rounded_inputs,
    scaled_inputs,
    solve,
)
from engine.model.folding import fold_gain, fold_groups
from engine.model.network import Held, StandIn
from engine.quant import Format, dequantized, needs_calibration, why_not_alone
from engine.quant.formats import FOLDED, folds
from engine.quant.methods.fold import folded, only_weights
from engine.workspace import Workspace


@dataclass
class Approximated:
    """What the layers of a recipe compute with."""

    held: dict[str, Held] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    """Input channels that ``+outlier`` keeps beside the codes, where it keeps any."""


def approximated(
    workspace: Workspace, layer: str, format: Format, account: Account
) -> Events[Held]:
    """What a layer, changed alone, computes with; yields while what it takes is being gathered.

    Methods that look at inputs are given those of the unchanged network.

    Raises:
        FormatError: as `approximation` does; nothing absorbs the scale that the format asks for;
            a method cannot work with the inputs it is given.
        TextError: the calibration text cannot be read.
    """
    states = None
    if needs_calibration(format):
        states = (yield from need_calibration(workspace)).reference
    held, _ = yield from _approximated(workspace, layer, format, states, account)
    return held


def approximated_recipe(
    workspace: Workspace,
    formats: Mapping[str, Format],
    account: Account,
    job: str = "",
    *,
    device: torch.device | None = None,
) -> Events[Approximated]:
    """What the layers of a whole recipe compute with.

    Methods that look at inputs are given those that the blocks before give as the recipe has them;
    layers of one block are all given its inputs as they are before any of it is changed.

    Args:
        workspace: with a loaded model.
        formats: the recipe.
        account: of the job.
        job: with a job's id, what is being solved is told.
        device: where weights wait until they are held; None leaves them where they were found.

    Raises:
        FormatError: as of `approximated`.
    """
    network, reference = workspace.need_network()
    found = Approximated()
    walked: RecipeStates | None = None
    if any(map(needs_calibration, formats.values())):
        calibration = yield from need_calibration(workspace)
        walked = RecipeStates(calibration.reference, network, calibration.batches, formats)
    for name in sorted(formats, key=lambda name: network.layers[name].start):
        format = formats[name]
        states = None
        if walked is not None and needs_calibration(format):
            states = walked.of(network.layers[name].start)
            if job:
                total = len(reference.batches)
                yield p.Progress(job=job, done=0, total=total, detail=f"solving {name} {format}")
        held, columns = yield from _approximated(workspace, name, format, states, account)
        if device is not None:
            held = _moved(held, device)
        found.held[name] = held
        if columns:
            found.columns[name] = columns
        if walked is not None:
            walked.settle(name, held)
        if workspace.should_stop():
            yield None
    return found


def why_not_folded(workspace: Workspace, layer: str, format: Format) -> str | None:
    """Why a layer's inputs do not allow for a format that its shape does; None where they do."""
    network, _ = workspace.need_network()
    if network.layers[layer].role == "embedding":
        why = why_not_alone(format)
        return why and f"{why}, and an embedding looks rows up: it multiplies no inputs"
    if not folds(format):
        return None
    group = fold_groups(network).get(layer)
    why = "nothing before it is known" if group is None else group.why_not
    return why and f"{why}, so nothing absorbs the scale of {format}"


def _approximated(
    workspace: Workspace, layer: str, format: Format, states: States | None, account: Account
) -> Events[tuple[Held, int]]:
    """What a layer computes with, and how many columns it keeps beside its codes."""
    network, _ = workspace.need_network()
    if (why := why_not_folded(workspace, layer, format)) is not None:
        raise FormatError(f"{layer}: {why}")
    if states is None:
        weights = only_weights(format)
        quantize = account.timed("quantize_s", lambda: approximation(workspace, layer, weights))
        weight = quantize()
        if method(format, "a8") is None:
            return weight, 0
        return StandIn(weight, rounded_inputs()), 0
    calibration = yield from need_calibration(workspace)
    key = (layer, str(format), states.prefix)
    if (known := calibration.solved.get(key)) is not None:
        return known
    inputs = yield from calibration.inputs(layer, states, account)
    scaling = yield from _scaling(workspace, calibration, layer, format, inputs, states, account)
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)

    def solved() -> Solution:
        stored = _stored(workspace, layer).to(network.device)
        return solve(stored, inputs, format, scaling, scale_dtype, layer)

    solution = account.timed("quantize_s", solved)()
    weight = solution.weight.to(network.dtype)
    held: Held = weight if solution.inputs is None else StandIn(weight, solution.inputs)
    found = (held, solution.columns)
    calibration.solved.keep(key, found, weight.nbytes)
    for note in solution.notes:
        if note not in calibration.said:
            calibration.said.add(note)
            yield p.Notice("info", note)
    return found


def _scaling(
    workspace: Workspace,
    calibration: Calibration,
    layer: str,
    format: Format,
    inputs: LayerInputs,
    states: States,
    account: Account,
) -> Events[Scaling | None]:
    """The scale of the layer's fold group by all methods that ask for one; None without any.

    It is one for all weights that share the input, each taken in this layer's format.
    """
    wanted = [each for each in format.methods if each.name in FOLDED]
    if not wanted:
        return None
    network = calibration.network
    group = fold_groups(network).get(layer) if folds(format) else None
    if group is not None:
        layers = tuple(group.layers)
    else:
        layers = calibration.shares[layer]
    key = (layers, str(format), states.prefix)
    if (known := calibration.scalings.get(key)) is not None:
        return known
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)
    device = inputs.statistics.gram.device
    scale = torch.ones(inputs.statistics.width, device=device)
    online, gain = scale, scale
    for each in wanted:

        def find(name: str = each.name, scale: Tensor = scale, gain: Tensor = gain) -> Tensor:
            weights = [folded(_stored(workspace, n).to(device), scale) for n in layers]
            there = scaled_inputs(inputs, gain)
            return find_scale(name, weights, there, format, scale_dtype, layer)

        found = account.timed("quantize_s", find)()
        scale = scale * found
        if ("online", True) in each.options:
            online = online * found
        gain = 1 / online
        if group is not None:
            gain = gain * fold_gain(network, group, scale / online)
        yield None
    scaling = Scaling(scale, gain)
    calibration.scalings.keep(key, scaling, 8 * len(scale))
    return scaling


def approximation(workspace: Workspace, layer: str, format: Format) -> Tensor:
    """``Ŵ`` of a layer in the network's dtype and on its device, oriented ``[out, in]``.

    Taken from the weights as stored, so that the dtype the network runs in never changes ``Ŵ``:
    only the cast at the end does.

    Raises:
        FormatError: if the format is not built, looks at inputs, or cannot hold the layer.
        EngineError: if a scale overflows; the message names the layer.
    """
    network, _ = workspace.need_network()
    stored = _stored(workspace, layer)
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)
    approx = dequantized(stored.to(network.device), format, scale_dtype, name=layer)
    return approx.to(network.dtype)


def _moved(held: Held, device: torch.device) -> Held:
    if isinstance(held, StandIn):
        return StandIn(held.weight.to(device), held.inputs)
    return held.to(device)


def _stored(workspace: Workspace, layer: str) -> Tensor:
    """The weight as stored; from the network where its dtype holds every stored value."""
    network, _ = workspace.need_network()
    weight = network.weight(layer)
    row = workspace.rows.get(layer)
    if row is None or row.dtype not in ("float32", "float16", "bfloat16"):
        return weight  # dequantised on loading: the network's values are the reference
    stored: torch.dtype = getattr(torch, row.dtype)
    if torch.promote_types(stored, weight.dtype) == weight.dtype:
        return weight
    read = read_layer(workspace.need_checkpoint(), row)
    return torch.nan_to_num(read, nan=0.0, posinf=0.0, neginf=0.0)
