"""Coarser levels of an image, and the overview of a slide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from slidesam.tasks.grid import Region
from slidesam.tasks.pixels import pyramid
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store.image import publish_image
from tests.support.made_slides import write_zarr


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_halving_the_largest_integers_keeps_them(dtype: str) -> None:
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min, 2**53 + 1):
        image = np.full((3, 4, 4), value, dtype)
        np.testing.assert_array_equal(pyramid.halve(image), np.full((3, 2, 2), value, dtype))


class CountingReader:
    """Counts how often each chunk of level 0 is asked for, and the most pixels that are asked for at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decodes: Counter[tuple[int, int, int]] = Counter()
        self.most_pixels = 0
        plain_fetch = SlideReader.fetch

        def fetch(reader: SlideReader, level: int, ts: range, cs: Sequence[int], zs: range, region: Region) -> Any:
            assert level == 0
            _, chunk_c, _, *sides = reader.slide.levels[0].chunks
            self.most_pixels = max(self.most_pixels, math.prod(region.shape) * len(cs))
            rows, columns = (
                range(start // side, -(-stop // side))
                for start, stop, side in zip(region[:2], region[2:], sides, strict=True)
            )
            for layer in {channel // chunk_c for channel in cs}:
                self.decodes.update((layer, row, column) for row in rows for column in columns)
            return plain_fetch(reader, level, ts, cs, zs, region)

        monkeypatch.setattr(SlideReader, "fetch", fetch)


# Height and width, chunks, bytes that may be read at once: chunks that suit halving and ones that don't.
KINDS = [
    ((700, 900), (64, 64), 2**14),
    ((700, 900), (33, 40), 2**14),
    ((700, 900), (48, 80), 2**16),
    ((701, 903), (333, 517), 2**14),
    ((1023, 130), (7, 130), 2**14),
    ((1023, 130), (1, 130), 2**12),
    ((90, 1700), (90, 11), 2**12),
    ((700, 900), (700, 900), 2**14),
]


@pytest.mark.parametrize(("shape", "chunk", "most_bytes"), KINDS)
@pytest.mark.parametrize("channels", [(0,), (1, 0)])
def test_an_overview_decodes_each_chunk_once(
    shape: tuple, chunk: tuple, most_bytes: int, channels: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 60)
    monkeypatch.setattr(pyramid, "_STRIP_BYTES", most_bytes)
    image = np.random.default_rng(0).integers(0, 60_000, (2, *shape)).astype(np.uint16)
    group = zarr.create_group(tmp_path / "s.ome.zarr")
    group.create_array("0", shape=image.shape, chunks=(2, *chunk), dtype=image.dtype)[...] = image
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}

    slide = inspect_slide(tmp_path / "s.ome.zarr")
    reader = CountingReader(monkeypatch)
    overview = pyramid.read_overview(slide, channels)
    expected = image
    for _ in range(pyramid.overview_level(slide)[1]):
        expected = pyramid.halve(expected)
    np.testing.assert_array_equal(overview, expected[list(channels)].transpose(1, 2, 0))
    assert set(reader.decodes.values()) == {1}
    assert len(reader.decodes) == math.prod(-(-size // side) for size, side in zip(shape, chunk, strict=True))
    # A chunk is in memory anyway.
    assert reader.most_pixels <= max(most_bytes // 2, math.prod(chunk) * len(channels))


@pytest.mark.parametrize("interleaved", [True, False])
def test_the_stores_image_decodes_each_chunk_once_however_many_channels(
    interleaved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 60)
    image = np.random.default_rng(0).integers(0, 60_000, (7, 200, 300)).astype(np.uint16)
    slide = tmp_path / "s.tif"
    if interleaved:
        stack = np.ascontiguousarray(image.transpose(1, 2, 0))
        tifffile.imwrite(slide, stack, tile=(64, 64), photometric="minisblack", planarconfig="contig")
    else:
        tifffile.imwrite(slide, image, tile=(64, 64), ome=True, metadata={"axes": "CYX"})
    overrides = {"segmenter.kind": "watershed", "image.convert": "never", "image.rechunk": "never"}
    run = plan_run(slide, tmp_path / "out", make_settings(overrides=overrides))
    reader = CountingReader(monkeypatch)
    publish_image(run)
    assert set(reader.decodes.values()) == {1}
    expected = pyramid.halve(pyramid.halve(pyramid.halve(image)))
    found = zarr.open_array(run.store / "0", mode="r")
    np.testing.assert_array_equal(found[0, :, 0], expected)
    assert found.shards is not None
    assert found.shards[1] == 1


def test_the_overview_of_a_slide_with_levels_is_its_own_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 70)
    made = write_zarr(tmp_path / "s.ome.zarr", "cyx", {"c": 2, "y": 101, "x": 130})
    slide = inspect_slide(made.path)
    assert pyramid.overview_level(slide) == (1, 0)
    np.testing.assert_array_equal(pyramid.read_overview(slide, (0, 1)), made.levels[1][0, :, 0].transpose(1, 2, 0))
