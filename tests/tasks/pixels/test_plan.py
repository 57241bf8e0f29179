"""The plan for a slide's pixels: tiles that fit into memory, and rewriting where reading in place would cost more."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.plan import (
    CHUNK_COST_BYTES,
    SHARD_SIDE,
    TILE_BYTES,
    amplification,
    choose_tile_shape,
    plan_image,
)
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.slides.facts import Level, Slide
from tests.support import DATA


def slide_of(
    shape: tuple[int, int], chunks: tuple[int, int, int, int, int], channels: int = 3, dtype: str = "uint8"
) -> Slide:
    """Describe a slide that doesn't exist."""
    facts = json.loads((DATA / "a_slide.json").read_text())
    facts |= {"size_c": channels, "channels": list(range(channels)), "dtype": dtype, "is_rgb": channels == 3}
    facts |= {"display": [[None, None]] * channels, "channel_names": [str(c) for c in range(channels)]}
    facts["levels"] = [Level(shape=shape, downsample=(1, 1), chunks=chunks).model_dump(mode="json")]
    return Slide.model_validate(facts)


@given(
    st.tuples(st.integers(1, 200_000), st.integers(1, 200_000)),
    st.sampled_from([(256, 256), (240, 240), (512, 128), (1000, 37), (1, None), (8, None), (64, None), (9000, 9000)]),
    st.sampled_from([1, 2, 3, 6, 8, 80]),
)  # fmt: skip
def test_tiles_are_whole_shards_of_whole_source_tiles_that_fit_into_memory(
    shape: tuple[int, int], source_tile: tuple[int, int | None], pixel_bytes: int
) -> None:
    source_tile = (source_tile[0], shape[1] if source_tile[1] is None else source_tile[1])
    shard, tile = choose_tile_shape(shape, source_tile, pixel_bytes)
    assert all(p % s == 0 for p, s in zip(tile, shard, strict=True))
    height, width = min(tile[0], shape[0]), min(tile[1], shape[1])
    assert height * width * pixel_bytes <= TILE_BYTES or max(shard) <= 512 or shard[0] <= 16
    bands = source_tile[1] >= shape[1]
    if max(source_tile) <= 1024 and pixel_bytes <= 8 and not bands:
        assert all(s % t == 0 for s, t in zip(shard, source_tile, strict=True))
        assert max(shard) <= SHARD_SIDE
    if bands and shape[1] > SHARD_SIDE:
        assert tile[1] >= shape[1]


@given(st.data())
def test_amplification_is_what_counting_says(data: st.DataObject) -> None:
    size = st.integers(1, 40)
    shape = data.draw(st.tuples(size, size))
    grid = BlockGrid(shape, data.draw(st.tuples(size, size)), data.draw(st.integers(0, 9)))
    t, c, z, y, x = chunks = data.draw(st.tuples(*[st.integers(1, 3)] * 3, size, size))
    channels = sorted(data.draw(st.sets(st.integers(0, 5), min_size=1)))
    decoded = used = 0
    for block in grid:
        touched = {
            (channel // c, row // y, column // x)
            for channel in channels
            for row in range(block.outer.y0, block.outer.y1)
            for column in range(block.outer.x0, block.outer.x1)
        }
        for _, row, column in touched:
            height, width = min(y, shape[0] - row * y), min(x, shape[1] - column * x)
            decoded += height * width * t * c * z * 2 + CHUNK_COST_BYTES
        used += block.outer.shape[0] * block.outer.shape[1] * len(channels) * 2
    assert amplification(chunks, shape, channels, 2, grid) == pytest.approx(decoded / used)


@pytest.mark.parametrize(
    ("chunks", "channels", "mode"),
    [
        ((1, 3, 1, 512, 512), 3, "in place"),
        ((1, 1, 1, 1024, 1024), 1, "in place"),
        ((1, 3, 1, 16, 100_000), 3, "rechunk"),  # strips
        ((1, 1, 1, 32, 32), 3, "rechunk"),  # tiny
        ((1, 1, 1, 8192, 8192), 1, "rechunk"),  # huge
        ((1, 3, 50, 512, 512), 3, "rechunk"),  # a stack in each chunk
    ],
)
def test_what_is_costly_to_read_is_rechunked(chunks: tuple, channels: int, mode: str) -> None:
    slide = slide_of((100_000, 100_000), chunks, channels)
    blocks = BlockGrid(slide.shape, (2048, 2048), 128)
    assert plan_image(slide, ImageSettings(), blocks).mode == mode
    assert plan_image(slide, ImageSettings(rechunk="never"), blocks).mode == "in place"
    assert plan_image(slide, ImageSettings(rechunk="always"), blocks).mode == "rechunk"
    assert plan_image(slide, ImageSettings(convert="always"), blocks).mode == "convert"
    assert plan_image(slide.model_copy(update={"kind": "tiff"}), ImageSettings(), blocks).mode == "convert"


def test_a_huge_slide_is_few_files() -> None:
    slide = slide_of((100_000, 100_000), (1, 3, 1, 256, 256)).model_copy(update={"kind": "tiff"})
    plan = plan_image(slide, ImageSettings(), BlockGrid(slide.shape, (2048, 2048), 128))
    assert plan.shard == plan.tile == (4096, 4096)
    shards = sum(len(plan.grid(0 if level < plan.in_memory else level)) for level in range(len(plan.levels)))
    assert shards + len(plan.levels) + 1 < 2000
    # Which of its levels are the source's own doesn't follow from how many a tile's task writes.
    assert plan.in_memory == 3
