"""The weights of a recipe beside the model: whole, or in the few bytes of their stored form.

Whole they cost nothing to compute with, and as much memory as the layers of the model themselves.
If the budget does not hold that, each is made whole from its codes and scales while its block runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.formats.grammar import Format, needs_calibration
from engine.formats.storage import stored_bits
from engine.measure.calibration.solve import method
from engine.measure.evaluation.reference import Reference
from engine.model.memory import check_memory, memory_free
from engine.model.network import Network


def compact_weights(reference: Reference, formats: Mapping[str, Format], what: str) -> bool:
    """Whether weights of a recipe are to be kept in their stored form.

    They are where states and whole weights together do not fit what is left of the budget. Those of
    a streamed network are not kept: see `engine.measure.evaluation.streamed_recipe`.

    Args:
        reference: of the unchanged network.
        formats: the recipe.
        what: is kept beside the model, for the message.

    Raises:
        OutOfMemoryError: there is not even room for those; it says how much is needed.
    """
    network = reference.network
    whole = sum(_whole(network, name) for name in formats)
    room = reference.memory.room.left
    compact = whole + reference.sizes.states(1) > room
    needed = sum(_compact(network, *each) for each in formats.items()) if compact else whole
    check_memory(needed, memory_free(network.device), network.device, what=what)
    return compact


def _whole(network: Network, name: str) -> int:
    return math.prod(network.layers[name].shape) * network.dtype.itemsize


def _compact(network: Network, name: str, format: Format) -> int:
    """Bytes of a stored form; integer codes of 5 to 7 bits take a byte each."""
    shape = network.layers[name].shape
    if format.kept or needs_calibration(format) or method(format, "a8") is not None:
        return _whole(network, name)
    spare = (8 - format.bits) * math.prod(shape) // 8 if 4 < format.bits < 8 else 0
    return stored_bits(format, shape) // 8 + spare
