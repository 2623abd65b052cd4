"""The size of an artefact, worked out in two ways."""

from __future__ import annotations

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
    found = StoredSums(roles, shapes, stored).size(changed, other, tied=tied)
    assert repr(found) == repr(wanted)  # nan equals nan


def test_bits_of_the_body_are_of_the_same_layers_in_every_recipe() -> None:
    """By hand: a body of 1,000 weights and a head of 500 that shares the embedding's tensor."""
    roles: list[Role] = ["embedding", "linear", "head"]
    shapes = [(50, 10), (100, 10), (50, 10)]
    sums = StoredSums(roles, shapes, [bits_as_stored(shape, "float16") for shape in shapes])
    as_stored = sums.size({}, 100, tied=True)
    assert (as_stored.bits_per_weight, as_stored.bits_all) == (16, 16)
    assert as_stored.bytes == 100 + 2 * (500 + 1000)
    body = sums.size({1: 4_000}, 100, tied=True)
    assert (body.bits_per_weight, body.bits_all) == (4, (4_000 + 8_000) / 1500)
    assert body.bytes == 100 + 500 + 1000
    head = sums.size({1: 4_000, 2: 4_000}, 100, tied=True)
    assert head.bits_per_weight == 4, "the head does not change what the body takes"
    assert head.bits_all == (4_000 + 8_000 + 4_000) / 1500, "the head has a copy of its own now"
    assert head.bytes == body.bytes + 500
    apart = sums.size({1: 4_000, 2: 4_000}, 100, tied=False)
    assert apart.bits_all == (4_000 + 8_000 + 4_000) / 2000
