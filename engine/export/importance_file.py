"""Writes the importance of inputs over the calibration text as a file of llama.cpp.

The sums are those that ``+imatrix`` weighs by: what is measured with it is what ``llama-quantize
--imatrix FILE`` writes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine import protocol as p
from engine.checkpoint.imatrix import Entry, Imatrix, imatrix_bytes
from engine.errors import EngineError, InfeasibleError, UsageError
from engine.export.recipe_file import check_file
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import why_not_given
from engine.measure.calibration.calibration import Calibration, need_calibration
from engine.measure.calibration.importance import gguf_names
from engine.measure.calibration.solve import LayerInputs
from engine.measure.counts import JobCounts
from engine.service.jobs import Outcome, Steps
from engine.store.files import write_whole
from engine.workspace import Loaded

_PROBE = parse_format("q4_0+imatrix")
"""A format that needs the importance of inputs and nothing else."""


def write_importances(loaded: Loaded, command: p.WriteImatrix, job: str) -> Steps:
    """Gather block by block, and write the file at the end.

    Yields:
        `Progress` in layers; a `Notice` where layers are left out.

    Raises:
        UsageError: the settings name an importance matrix, or the file exists.
        InfeasibleError: llama.cpp has no names for the layers.
        TextError: the calibration text cannot be read.
        EngineError: the file cannot be written.
    """
    out, checkpoint = Path(command.out), loaded.opened.checkpoint
    if loaded.settings.imatrix is not None:
        raise UsageError("an importance matrix is made from calibration text: leave --imatrix out")
    check_file(out, checkpoint.folder, overwrite=command.overwrite)
    names = gguf_names(loaded)
    if names is None:
        raise InfeasibleError(
            f"{checkpoint.name}: the gguf package has no architecture "
            f"{checkpoint.config.get('model_type', '')!r}, so llama.cpp's names are not known"
        )
    taken, left = _taken(loaded, names, head=command.head)
    if not taken:
        raise InfeasibleError(f"{checkpoint.name}: no layer has inputs that llama.cpp names")
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
    calibration = yield from need_calibration(loaded)
    stage = counts.stage("calibrating", len(taken))
    entries: dict[str, Entry] = {}
    for done, layer in enumerate(taken):
        yield stage.step(done, layer)
        inputs = yield from calibration.inputs(layer, calibration.reference, counts)
        entries |= dict.fromkeys(names[layer], _entry(inputs))
    data = imatrix_bytes(_matrix(calibration, entries), older=out.suffix == ".dat")
    try:
        write_whole(out, data)
    except OSError as error:
        raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
    written = p.ImatrixWritten(file=str(out), bytes=len(data), weights=len(entries), left=left)
    return Outcome(measured=len(taken), timings=counts.timings, result=written)


def _taken(
    loaded: Loaded, names: dict[str, tuple[str, ...]], *, head: bool
) -> tuple[list[str], dict[str, str]]:
    """Layers in the order of the blocks, and those left out with the reason."""
    layers, left = loaded.network.layers, dict[str, str]()
    for name, layer in layers.items():
        if layer.role == "embedding":
            left[name] = "an embedding multiplies no inputs"
        elif layer.role == "head" and not head:
            left[name] = "llama-imatrix leaves out the head too; --head includes it"
        elif not names.get(name):
            left[name] = "llama.cpp has no weight for it alone"
        elif (why := why_not_given(loaded, name, _PROBE)) is not None:
            left[name] = why
    taken = [name for name in layers if name not in left]
    return sorted(taken, key=lambda name: layers[name].start), left


def _entry(inputs: LayerInputs) -> Entry:
    every = inputs.experts or (inputs.statistics,)
    sums = np.stack([each.gram.diagonal().cpu().numpy() for each in every])
    return Entry(sums, np.array([each.tokens for each in every], np.float32))


def _matrix(calibration: Calibration, entries: dict[str, Entry]) -> Imatrix:
    windows = calibration.windows
    count, size = windows.ids.shape
    return Imatrix(entries, (windows.text.name,), count, size)
