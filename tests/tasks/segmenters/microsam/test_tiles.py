"""Even tiles: each is one field, they cover the image once, and every tile but those at the rim keeps its overlap."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slidesam.tasks.segmenters.microsam.tiles import EvenTiling

LENGTHS = st.integers(1, 700)


@given(shape=st.tuples(LENGTHS, LENGTHS), tile=st.integers(16, 120), halo=st.integers(0, 40))
def test_each_tile_is_a_field_and_all_cover_the_image_once(shape: tuple[int, int], tile: int, halo: int) -> None:
    field = tile + 2 * halo
    tiling = EvenTiling(shape, (tile, tile), (halo, halo))
    times = np.zeros(shape, np.uint8)
    for number in range(tiling.number_of_blocks):
        found = tiling.get_block_with_halo(number, [halo, halo])
        outer, inner, local = found
        assert outer.shape == [min(length, field) for length in shape]
        times[inner.begin[0] : inner.end[0], inner.begin[1] : inner.end[1]] += 1
        for axis in range(2):
            assert inner.begin[axis] - outer.begin[axis] == local.begin[axis]
            assert local.shape == inner.shape
            assert inner.begin[axis] == 0 or local.begin[axis] >= halo
            assert inner.end[axis] == shape[axis] or outer.end[axis] - inner.end[axis] >= halo
        for corner in (inner.begin, [end - 1 for end in inner.end]):
            assert tiling.coordinates_to_block_id(corner) == number
    assert (times == 1).all()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(16, 60), st.integers(0, 20), st.integers(0, 40))
def test_blocks_of_whole_tiles_are_cut_as_one_block_is(
    n_tiles: int, n_blocks: int, tile: int, halo: int, more: int
) -> None:
    def place(start: int, length: int) -> dict[int, int]:
        """The begin of the tile that each pixel inside the halo lies in."""
        tiling = EvenTiling((1, length + 2 * (halo + more)), (1, tile), (0, halo))
        tiles = map(tiling.get_block_with_halo, range(tiling.number_of_blocks))
        spans = [(one.inner_block, one.outer_block.begin[1]) for one in tiles]
        begins = {start + x: start + outer for inner, outer in spans for x in range(inner.begin[1], inner.end[1])}
        return {x: begins[x] for x in range(start + halo + more, start + halo + more + length - 2 * more)}

    block = n_tiles * tile
    whole = place(0, n_blocks * block)
    for number in range(n_blocks):
        found = place(number * block, block)
        assert found == {x: whole[x] for x in found}


def test_a_block_with_its_halo_is_a_whole_number_of_tiles() -> None:
    for side, count in ((512 + 128, 4), (1024 + 128, 9), (2048 + 256, 36), (320, 1)):
        assert EvenTiling((side, side), (384, 384), (64, 64)).number_of_blocks == count
