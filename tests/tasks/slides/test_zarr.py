"""OME-Zarr as writers and copies leave it: missing chunks, other names of chunks, metadata of two versions, odd axes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.zarr.chunks import ChunkNames, find_chunks
from tests.support.made_slides import pixels
from tests.support.serial import segment_serially

IMAGE = pixels(3, 120, 150) + 1
AXES = ({"name": "c", "type": "channel"}, *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx"))
SCALE = [{"type": "scale", "scale": [1, 0.5, 0.25]}]


def write(
    path: Path, image: Any = IMAGE, version: str = "0.5", levels: int = 1, chunks: Any = (1, 32, 32), **options: Any
) -> Path:
    """An OME-Zarr; `entry` replaces parts of its multiscales."""
    entry, ome = options.pop("entry", {}), options.pop("ome", {})
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for level in range(levels):
        part = image[..., :: 2**level, :: 2**level]
        group.create_array(str(level), data=part, chunks=chunks, config={"write_empty_chunks": True}, **options)
        scale = [factor * (2**level if axis else 1) for axis, factor in enumerate(SCALE[0]["scale"])]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscales = {"multiscales": [{"version": version, "axes": list(AXES), "datasets": datasets} | entry]} | ome
    group.attrs.update({"ome": {"version": version, **multiscales}} if version == "0.5" else multiscales)
    return path


def notes(slide: Slide) -> str:
    return " | ".join(slide.warnings)


def read(slide: Slide, level: int = 0) -> np.ndarray:
    with SlideReader(slide) as reader:
        region = Region(0, 0, *slide.levels[level].shape)
        return reader.fetch(level, range(1), range(slide.size_c), range(1), region)[0, :, 0]


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; none removes a key."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# --- Missing chunks and shards.

KEYS = [
    ("0.5", {}, "0/c/0/{}/{}"),
    ("0.5", {"chunk_key_encoding": {"name": "default", "separator": "."}}, "0/c.0.{}.{}"),
    ("0.5", {"chunk_key_encoding": {"name": "v2", "separator": "."}}, "0/0.{}.{}"),
    ("0.5", {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, "0/0/{}/{}"),
    ("0.5", {"shards": (1, 32, 32), "chunks": (1, 8, 8)}, "0/c/0/{}/{}"),
    ("0.5", {"shards": (3, 32, 32), "chunks": (1, 16, 16)}, "0/c/0/{}/{}"),
    ("0.4", {}, "0/0.{}.{}"),
    ("0.4", {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, "0/0/{}/{}"),
]


@pytest.mark.parametrize(("version", "options", "key"), KEYS)
def test_missing_files_are_counted(tmp_path: Path, version: str, options: dict[str, Any], key: str) -> None:
    path = write(tmp_path / "a.zarr", version=version, **options)
    whole = inspect_slide(path)
    assert whole.warnings == ("its pixels aren't square: 0.25 × 0.5 µm (width × height)",)
    digests = {whole.identity.digest}
    noun, total = ("shards", 20 * 3 // options["shards"][0]) if "shards" in options else ("chunks", 60)
    for number, (row, column) in enumerate([(0, 1), (3, 4), (2, 0)], start=1):
        (path / key.format(row, column)).unlink()
        slide = inspect_slide(path)
        assert f"{number} of {total} {noun} of level 0 aren't there" in notes(slide)
        assert slide.identity.digest not in digests
        digests.add(slide.identity.digest)
    expected = IMAGE.copy()
    for row, column in [(0, 1), (3, 4), (2, 0)]:
        channels = slice(3) if options.get("shards", (1,))[0] == 3 else 0
        expected[channels, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 0
    np.testing.assert_array_equal(read(slide), expected)


def test_empty_chunks_inside_a_shard_are_no_loss(tmp_path: Path) -> None:
    image = IMAGE.copy()
    image[:, 10:70] = 0
    path = write(tmp_path / "a.zarr", image, chunks=(1, 10, 10), shards=(1, 40, 50))
    group = zarr.open_group(path)
    group.create_array(
        "0", shape=image.shape, chunks=(1, 10, 10), shards=(1, 40, 50), dtype=image.dtype, overwrite=True
    )[...] = image
    assert "aren't there" not in notes(inspect_slide(path))


@pytest.mark.parametrize("separator", ["/", "."])
def test_any_number_of_chunks_is_counted_soon(tmp_path: Path, separator: str) -> None:
    encoding = {"name": "v2", "separator": separator}
    path = write(tmp_path / "a.zarr", IMAGE[:, :1, :1], version="0.4", chunks=(1, 40, 40), chunk_key_encoding=encoding)
    change(path / "0/.zarray", shape=[3, 2800, 2400])
    for index in ("0", "1", "2"):
        for row in range(70):
            folder = path / "0" / index / str(row) if separator == "/" else path / "0"
            folder.mkdir(parents=True, exist_ok=True)
            for column in range(30, 60):
                (folder / (str(column) if separator == "/" else f"{index}.{row}.{column}")).touch()
    start = time.perf_counter()
    assert f"{6300 - 3} of 12600 chunks of level 0 aren't there" in notes(inspect_slide(path))
    assert time.perf_counter() - start < 2


def test_only_numbers_of_chunks_count(tmp_path: Path) -> None:
    for name in ("0.0", "0.1.bak", "00.1", "1.0.0", "1.2", "a.0", ".zarray", "²", "0,1", "-1.0", "1.1"):
        (tmp_path / name).touch()
    (tmp_path / "0.1").mkdir()
    assert find_chunks(tmp_path, ChunkNames(".", False), (2, 2)).tolist() == [[True, False], [False, True]]
    assert not find_chunks(tmp_path, ChunkNames("/", False), (2, 2)).any()
    assert not find_chunks(tmp_path / "nowhere", ChunkNames("/", True), (2, 2)).any()


def test_a_level_that_lacks_what_level_0_has_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", levels=3)
    assert [level.is_whole for level in inspect_slide(path).levels] == [True] * 3
    (path / "1/c/0/1/1").unlink()
    slide = inspect_slide(path)
    assert [level.is_whole for level in slide.levels] == [True, False, True]
    assert "level 1 lacks chunks" in notes(slide)
    for row, column in ((2, 2), (2, 3), (3, 2), (3, 3)):  # all that it covers
        (path / f"0/c/0/{row}/{column}").unlink()
    slide = inspect_slide(path)
    assert [level.is_whole for level in slide.levels] == [True] * 3
    assert "4 of 60 chunks of level 0" in notes(slide)
    assert "lacks" not in notes(slide)


# --- Names of chunks that differ from the metadata.


@pytest.mark.parametrize(
    ("version", "options", "key", "kind"),
    [
        (*row, kind)
        for row in KEYS
        for kind in ("default", "v2")
        if "shards" not in row[1] and (row[0], kind) != ("0.4", "default")  # Zarr v2 has one kind of names
    ],
)
@pytest.mark.parametrize("separator", ["/", "."])
def test_names_on_disk_decide(
    tmp_path: Path, version: str, options: dict[str, Any], key: str, kind: str, separator: str
) -> None:
    path = write(tmp_path / "a.zarr", version=version, levels=2, **options)
    for level in "01":
        if version == "0.4":
            change(path / level / ".zarray", dimension_separator=separator)
        else:
            encoding = {"name": kind, "configuration": {"separator": separator}}
            change(path / level / "zarr.json", chunk_key_encoding=encoding)
    slide = inspect_slide(path)
    stated = separator.join((["c"] if kind == "default" else []) + ["0"] * 3)
    on_disk = key.removeprefix("0/").format(0, 0)
    assert (f"named like {on_disk} where the metadata say {stated}" in notes(slide)) == (stated != on_disk)
    assert notes(slide).count("named like") <= 1
    assert "aren't there" not in notes(slide)
    for level in range(2):
        np.testing.assert_array_equal(read(slide, level), IMAGE[:, :: 2**level, :: 2**level])


def test_a_separator_that_isnt_stated_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", version="0.4", chunk_key_encoding={"name": "v2", "separator": "/"})
    change(path / "0/.zarray", dimension_separator=None)
    (path / "0/1/1/1").unlink()
    slide = inspect_slide(path)
    assert "0/0/0" in notes(slide)
    assert "1 of 60 chunks" in notes(slide)


def test_chunks_of_unknown_names_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    shutil.move(path / "0/c", path / "0/data")
    with pytest.raises(SlideError, match=r"a.zarr: chunks of level 0 are named like 'data/.*c/0/0/0'; copy"):
        inspect_slide(path)
    shutil.rmtree(path / "0/data")
    assert "60 of 60 chunks" in notes(inspect_slide(path))


# --- Metadata of two versions.


def test_metadata_of_two_versions(tmp_path: Path) -> None:
    """A folder upgraded in place, in each state: the version with OME metadata counts."""
    path = write(tmp_path / "a.zarr", version="0.4", levels=2)
    empty = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (path / "zarr.json").write_text(json.dumps(empty))
    slide = inspect_slide(path)
    assert (slide.format, slide.mpp) == ("OME-Zarr 0.4", (0.5, 0.25))
    np.testing.assert_array_equal(read(slide), IMAGE)
    other = write(tmp_path / "b.zarr", version="0.5", image=IMAGE * 2, levels=2)
    for level in "01":  # arrays of v3 beside those of v2
        shutil.copy(other / level / "zarr.json", path / level)
    np.testing.assert_array_equal(read(inspect_slide(path)), IMAGE)
    change(path / "0/zarr.json", codecs=["of no kind"])  # what doesn't count isn't looked at
    np.testing.assert_array_equal(read(inspect_slide(path)), IMAGE)
    shutil.copy(other / "0/zarr.json", path / "0")
    for level in "01":
        shutil.copytree(other / level / "c", path / level / "c")
    np.testing.assert_array_equal(read(inspect_slide(path)), IMAGE)
    shutil.copy(other / "zarr.json", path)
    np.testing.assert_array_equal(read(inspect_slide(path)), IMAGE * 2)
    assert inspect_slide(path).format == "OME-Zarr 0.5"
    shutil.rmtree(path / "0/c")
    shutil.rmtree(path / "1/c")
    np.testing.assert_array_equal(read(inspect_slide(path)), IMAGE)
    shutil.copy(tmp_path / "a.zarr/0/zarr.json", path / "zarr.json")  # an array's, where the group's should be
    assert inspect_slide(path).format == "OME-Zarr 0.4"


# --- Axes, units and transformations.


def make_axes(*axes: Any) -> list[Any]:
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]


@pytest.mark.parametrize(
    ("axes", "order", "mpp"),
    [
        (make_axes("C", {"name": "Y", "unit": "Micrometers"}, {"name": "X", "unit": "MICROMETER"}), "cyx", (0.5, 0.25)),
        (make_axes("c", {"name": "y", "units": "nanometer"}, {"name": "x", "units": "nanometer"}), "cyx", (0.0005, 0.00025)),
        (make_axes("channel", {"name": "height", "unit": "um"}, {"name": "width", "unit": "um"}), "cyx", (0.5, 0.25)),
        (make_axes({"name": "stain", "type": "channel"}, "y", "x"), "cyx", None),
        (["c", "y", "x"], "cyx", None),
        (make_axes("c", {"name": "y", "unit": "pixel"}, {"name": "x", "unit": "pixel"}), "cyx", None),
        (make_axes("c", {"name": "y", "unit": "micrometer"}, {"name": "x"}), "cyx", None),
        (make_axes("c", {"name": "y", "unit": None}, {"name": "x", "unit": 5}), "cyx", None),
        (["c", *(AXES[1] | {"name": name} for name in ("rows", "cols"))], "cyx", (0.5, 0.25)),
        (make_axes("time", {"name": "y", "unit": "millimetre"}, {"name": "x", "unit": "millimetre"}), "tyx", None),
    ],
)  # fmt: skip
def test_axes_and_units(tmp_path: Path, axes: Any, order: str, mpp: tuple[float, float] | None) -> None:
    slide = inspect_slide(write(tmp_path / "a.zarr", version="0.4", entry={"axes": axes}))
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    assert (slide.size_t, slide.size_c) == ((3, 1) if order[0] == "t" else (1, 3))
    assert ("rows as y, cols as x" in notes(slide)) == ("rows" in str(axes))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"axes": make_axes("c", "y", "y")}, "axes are c, y, y"),
        ({"axes": make_axes("c", {"name": "a", "type": "space"}, "x")}, "axes are c, a, x"),
        ({"axes": make_axes("c", "row", "column")}, "axes are c, row, column"),
        ({"coordinateTransformations": [{"type": "scale", "scale": [1, 0, 2]}]}, "not 3 positive numbers"),
        ({"coordinateTransformations": [{"type": "scale", "scale": [1, "2", 2]}]}, "not 3 positive numbers"),
    ],
)
def test_axes_and_transformations_that_make_no_sense_are_refused(tmp_path: Path, entry: Any, words: str) -> None:
    with pytest.raises(SlideError, match=words):
        inspect_slide(write(tmp_path / "a.zarr", entry=entry))


SHIFT = {"type": "translation", "translation": [0, 5, 5]}


@pytest.mark.parametrize(
    ("part", "transformations", "words", "has_size"),
    [
        ("entry", [{"type": "scale", "scale": [1, 2]}], "its scale is [1, 2], not 3 numbers", True),
        ("entry", [{"type": "scale", "scale": 2}, SHIFT], "its scale is 2, not 3 numbers", True),
        (
            "level",
            [{"type": "scale", "scale": [1, 1, 1, 0.5, 0.25]}, SHIFT],
            "its scale is [1, 1, 1, 0.5, 0.25]",
            False,
        ),
        ("level", [*SCALE, {"type": "translation", "translation": [0, 5]}], "its translation is [0, 5], not 3", True),
        ("entry", [SHIFT, {"type": "translation", "translation": [0, "5", 2]}], "its translation is [0, '5', 2]", True),
        ("entry", [SHIFT, {"type": "translation", "translation": None}], "its translation is None, not 3", True),
    ],
)
def test_transformations_of_other_axes_arent_used(
    tmp_path: Path, part: str, transformations: list[Any], words: str, has_size: bool
) -> None:
    """Nor is any translation beside them, since it may be in their units; the pixels are all right."""
    entry: dict[str, Any] = {"coordinateTransformations": transformations}
    entry = {"datasets": [{"path": "0"} | entry]} if part == "level" else entry
    slide = inspect_slide(write(tmp_path / "a.zarr", entry=entry))
    assert notes(slide).count(words) == 1, slide.warnings
    assert (slide.mpp, slide.origin) == ((0.5, 0.25) if has_size else None, (0.0, 0.0))
    np.testing.assert_array_equal(read(slide), IMAGE)


def test_a_unit_without_a_scale_is_no_pixel_size(tmp_path: Path) -> None:
    slide = inspect_slide(write(tmp_path / "a.zarr", version="0.4", entry={"datasets": [{"path": "0"}]}))
    assert slide.mpp is None
    assert "isn't known" in notes(slide)


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, "omero", {"channels": None}, {"channels": [None, 1, "a"]}, {"channels": [{"label": None}] * 3},
        {"channels": [{"color": 255, "window": None, "label": 5}] * 3}, {"channels": [{}] * 9},
    ],
)  # fmt: skip
def test_odd_omero(tmp_path: Path, value: Any) -> None:
    slide = inspect_slide(write(tmp_path / "a.zarr", ome={"omero": value}))
    names = ("5",) * 3 if "label': 5" in str(value) else ("channel 0", "channel 1", "channel 2")
    assert (slide.channel_names, slide.is_rgb) == (names, False)


PLACED = [
    ({"datasets": [{"type": "translation", "translation": [0, 5000, 2500]}]}, (5000.0, 2500.0)),
    ({"entry": [{"type": "translation", "translation": [0, 5000, 2500]}]}, (5000.0, 2500.0)),
    ({"datasets": [{"type": "translation", "translation": [0, -10, 4]}],
      "entry": [{"type": "scale", "scale": [1, 2, 2]}, {"type": "translation", "translation": [0, 3, 0]}]}, (-17.0, 8.0)),
    ({}, (0.0, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "position"), PLACED)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("unit", ["micrometer", "nanometer", None])
def test_translation_of_level_0(
    tmp_path: Path, parts: dict[str, Any], position: tuple[float, float], version: str, unit: str | None
) -> None:
    datasets = [{"path": "0", "coordinateTransformations": SCALE + parts.get("datasets", [])}]
    axes = make_axes("c", *({"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in "yx"))
    entry = {"datasets": datasets, "axes": axes, "coordinateTransformations": parts.get("entry", [])}
    slide = inspect_slide(write(tmp_path / "a.zarr", version=version, entry=entry))
    factor = 2.0 if any(part["type"] == "scale" for part in parts.get("entry", [])) else 1.0
    pixel = (0.5 * factor, 0.25 * factor)
    assert slide.origin == pytest.approx((position[0] / pixel[0], position[1] / pixel[1]))
    in_micrometres = {"micrometer": 1.0, "nanometer": 1e-3, None: 0.0}[unit]
    assert slide.position == pytest.approx([at * in_micrometres for at in position] if unit else slide.origin)
    record = slide.model_dump(mode="json")
    record.pop("origin", None)
    assert Slide.model_validate(record).position == (0.0, 0.0)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("convert", ["always", "never"])
def test_translation_is_kept_in_image_and_labels(tmp_path: Path, version: str, convert: str) -> None:
    image = np.zeros((1, 300, 300), np.uint16)
    for y in range(20, 280, 40):
        image[0, y : y + 12, y : y + 12] = 2000
    translation = {"type": "translation", "translation": [0, 5000.5, -2500]}
    entry = {"datasets": [{"path": "0", "coordinateTransformations": [*SCALE, translation]}]}
    path = write(tmp_path / "a.zarr", image, version, chunks=(1, 128, 128), entry=entry)
    overrides = {
        "segmenter.kind": "watershed", "blocks.block_shape": 256, "image.convert": convert, "image.ome_zarr": version,
    }  # fmt: skip
    assert segment_serially(path, tmp_path / "out", overrides).max() == 7
    root = zarr.open_group(next((tmp_path / "out").glob("**/*.ome.zarr")), mode="r")
    (label,) = root["labels"].group_keys()
    for group in (root, root["labels"][label]):
        attributes = group.attrs.asdict()
        first = attributes.get("ome", attributes)["multiscales"][0]["datasets"][0]
        scale, moved = first["coordinateTransformations"]
        assert scale["scale"][3:] == [0.5, 0.25]
        assert moved["translation"] == pytest.approx([0, 0, 0, 5000.5, -2500])
