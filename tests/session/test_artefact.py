"""The size of an artefact, worked out in two ways."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import Role
from engine.session.artefact import StoredSums, artefact_size, bits_as_stored

LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["linear", "experts", "head", "embedding"]),
        st.sampled_from([(8, 16), (3, 5), (2, 4, 8)]),
        st.sampled_from(["float16", "float32", "float8_e4m3fn"]),
        st.none() | st.integers(1, 500),
    ),
    max_size=8,
)


@given(LAYERS, st.integers(0, 100), st.booleans())
def test_sums_made_once_give_what_sums_over_the_whole_table_give(
    layers: list[tuple[Role, tuple[int, ...], str, int | None]], other: int, tied: bool
) -> None:
    roles = [role for role, _, _, _ in layers]
    shapes = [shape for _, shape, _, _ in layers]
    stored = [bits_as_stored(shape, dtype) for _, shape, dtype, _ in layers]
    changed = {row: bits for row, (_, _, _, bits) in enumerate(layers) if bits is not None}
    wanted = artefact_size(
        roles,
        shapes,
        [changed.get(row, bits) for row, bits in enumerate(stored)],
        [row in changed for row in range(len(layers))],
        other,
        tied=tied,
    )
    found = StoredSums(roles, shapes, [d for _, _, d, _ in layers]).size(changed, other, tied=tied)
    assert found.bytes == wanted.bytes
    assert found.bits_per_weight == wanted.bits_per_weight or (
        math.isnan(found.bits_per_weight) and math.isnan(wanted.bits_per_weight)
    )
