"""Regions of interest: read as QuPath writes them, refused where they can't be meant, exact at their borders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.regions_of_interest import RegionsOfInterest, is_rectangle, read_regions

SHAPE = (1000, 2000)


def polygon(*corners: tuple[float, float], holes: tuple[list[tuple[float, float]], ...] = ()) -> dict[str, Any]:
    rings = [list(corners), *holes]
    return {"type": "Polygon", "coordinates": [[*map(list, ring), list(ring[0])] for ring in rings]}


def square(x: float, y: float, side: float) -> dict[str, Any]:
    return polygon((x, y), (x + side, y), (x + side, y + side), (x, y + side))


def feature(geometry: object, **properties: object) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "7f",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def write(folder: Path, content: object, name: str = "regions.geojson") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def read(folder: Path, content: object) -> RegionsOfInterest:
    return read_regions(write(folder, content), SHAPE, None)


class TestReading:
    def test_a_rectangle_is_in_pixels_or_micrometres(self) -> None:
        for text in ("100, 200, 50, 40", "100 200 50 40 px", "25, 100, 12.5, 20 um", "25,100,12.5,20µm"):
            assert is_rectangle(text)
            bounds = read_regions(text, SHAPE, (0.5, 0.25)).polygons[0].bounds
            assert bounds == (100, 200, 150, 240), text
        assert not is_rectangle("1,2,3")
        assert not is_rectangle("slides/1,2,3,4.geojson")

    @pytest.mark.parametrize("way", ["collection", "list", "feature", "geometry", "gzip"])
    def test_files_as_programs_write_them(self, tmp_path: Path, way: str) -> None:
        one = feature(square(10, 20, 30), name="tumour")
        content: dict[str, object] = {
            "collection": {"type": "FeatureCollection", "features": [one]}, "list": [one], "feature": one,
            "geometry": square(10, 20, 30), "gzip": one,
        }  # fmt: skip
        path = write(tmp_path, content[way])
        if way == "gzip":
            Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
        regions = read_regions(path, SHAPE, None)
        assert regions.names == ("region" if way == "geometry" else "tumour",)
        assert regions.polygons[0].bounds == (10, 20, 40, 50)

    def test_names_are_told_apart(self, tmp_path: Path) -> None:
        properties = [
            {"name": "A"}, {"classification": {"name": "Tumor", "color": [1, 2, 3]}}, {"classification": {"name": "Tumor"}},
            {"name": "Tumor 2"}, {}, {"name": " \n "},
        ]  # fmt: skip
        content = [feature(square(10 * place, 0, 5), **each) for place, each in enumerate(properties)]
        assert read(tmp_path, content).names == ("A", "Tumor 1", "Tumor 3", "Tumor 2", "region 1", "region 2")

    def test_the_identity_is_of_what_is_drawn(self, tmp_path: Path) -> None:
        first = read(tmp_path, [feature(square(10, 20, 30), name="A")]).identity
        turned = polygon((40, 20), (40, 50), (10, 50), (10, 20))
        assert read(tmp_path, {"type": "FeatureCollection", "features": [feature(turned, name="A")]}).identity == first
        assert read(tmp_path, [feature(square(10, 20, 31), name="A")]).identity != first
        assert read(tmp_path, [feature(square(10, 20, 30), name="B")]).identity != first

    def test_a_copy_is_the_same(self, tmp_path: Path) -> None:
        hole = [(30.0, 22.0), (34.0, 22.0), (34.0, 24.0)]
        regions = read(
            tmp_path, [feature(polygon((10, 20), (40, 20), (40, 50), holes=(hole,))), feature(square(0, 0, 9))]
        )
        assert RegionsOfInterest.from_arrays(regions.names, regions.to_arrays()) == regions


BOW = polygon((0, 0), (10, 10), (10, 0), (0, 10))
REFUSED = {
    "no JSON": ("{", "can't be read"),
    "another JSON": ({"type": "Topology"}, "isn't GeoJSON"),
    "a number": (5, "isn't GeoJSON"),
    "nothing in it": ({"type": "FeatureCollection", "features": []}, "has no polygon"),
    "a point": ([feature({"type": "Point", "coordinates": [1, 2]})], "object 1 of .* is Point, no polygon"),
    "no geometry": ([feature(None)], "object 1 of .* is nothing, no polygon"),
    "crosses itself": ([feature(square(0, 0, 9)), feature(BOW)], r"polygon 2 of .* isn't valid \(Self-intersection"),
    "no area": ([feature(polygon((0, 0), (5, 5)))], "polygon 1 of .* (can't be read|isn't valid)"),
    "words": ([feature({"type": "Polygon", "coordinates": "here"})], "polygon 1 of .* can't be read"),
    "no numbers": ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [1, 1], [0, 0]]]}', "polygon 1 of"),
    "outside": ([feature(square(0, 0, 9)), feature(square(2000, 0, 9), name="B")], "B of .* lies outside .* 2000 × 1000 px"),
    "very many": ([feature(square(0, 0, 9))] * 1001, "has 1001 objects, more than 1000: export annotations only"),
    "nested": ("[" * 100_000, "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    content, message = REFUSED[what]
    with pytest.raises(SettingsError, match=f"setting blocks.region: .*{message}"):
        read(tmp_path, content)


def test_what_is_wrong_without_a_file(tmp_path: Path) -> None:
    for region, message in {
        str(tmp_path / "none.geojson"): "can't be read",
        str(tmp_path): "can't be read",
        "1, 2, 0, 4": "has no area",
        "1, 2, 3, 4 um": "doesn't say its pixel size",
        "5000, 2, 3, 4": "lies outside of the slide",
    }.items():
        with pytest.raises(SettingsError, match=message):
            read_regions(region, SHAPE, None)


def test_a_region_names_the_objects_whose_centroid_it_holds(tmp_path: Path) -> None:
    hole = [(20.0, 20.0), (30.0, 20.0), (30.0, 30.0), (20.0, 30.0)]
    regions = read(tmp_path, [feature(polygon((10, 10), (40, 10), (40, 40), (10, 40), holes=(hole,)), name="A"),
                              feature(square(25, 25, 30), name="B")])  # fmt: skip
    rows, columns = np.mgrid[:60, :60].reshape(2, -1)
    named = regions.find_points(rows, columns).reshape(60, 60)
    expected = np.full((60, 60), "")
    expected[25:55, 25:55] = "B"
    expected[10:40, 10:40] = "A"
    expected[20:30, 20:30] = ""
    expected[25:30, 25:30] = "B"
    np.testing.assert_array_equal(named, expected)
    assert regions.measure_areas(SHAPE) == {"A": 800, "B": 900}
    assert regions.measure_areas((30, 2000)) == {"A": 500, "B": 150}


@given(
    x=st.integers(0, 1990), y=st.integers(0, 990), width=st.integers(1, 300), height=st.integers(1, 300),
    block=st.sampled_from([64, 160, 512]), halo=st.sampled_from([0, 16, 100]),
)  # fmt: skip
def test_blocks_that_see_a_region_are_found(x: int, y: int, width: int, height: int, block: int, halo: int) -> None:
    grid = BlockGrid(SHAPE, (block, block), halo)
    found = read_regions(f"{x},{y},{width},{height}", SHAPE, None).find_blocks(grid)
    assert found == sorted(found)
    for each in grid:
        outer = each.outer
        overlaps = outer.x0 < x + width and x < outer.x1 and outer.y0 < y + height and y < outer.y1
        touches = outer.x0 <= x + width and x <= outer.x1 and outer.y0 <= y + height and y <= outer.y1
        assert overlaps <= (each.block_id in found) <= touches
