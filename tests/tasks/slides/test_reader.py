"""Reading slides: any region at any level of any kind of file, by a description that travels."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.codec import Codec
from slidesam.tasks.slides.tiff.layout import Page
from slidesam.tasks.slides.tiff.tables import make_page_spec
from tests.support.made_slides import Made, make_all, pixels, write_tiff


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return dict(make_all(tmp_path_factory.mktemp("slides")))


def test_any_region_of_any_format_is_what_was_written(made: dict[str, Made]) -> None:
    opened = {name: inspect_slide(each.path) for name, each in made.items()}
    for name, slide in opened.items():
        shapes = [level.shape for level in made[name].levels]
        assert [(slide.size_t, slide.size_c, slide.size_z), slide.dtype] == [
            shapes[0][:3],
            made[name].levels[0].dtype,
        ], name
        assert [level.shape for level in slide.levels] == [shape[3:] for shape in shapes], name
        assert slide.is_rgb == any(word in name for word in ("rgb", "YXS")), name
        assert Slide.model_validate_json(slide.model_dump_json()) == slide.model_copy(update={"source": None})
    readers = {name: SlideReader(slide) for name, slide in opened.items()}
    for name, reader in readers.items():
        for level, whole in enumerate(made[name].levels):
            everything = read_all(reader, level, whole.shape)
            np.testing.assert_array_equal(everything, whole, name)
            # Native, and of the type that others mean by that name: tifffile has a uint64 that zarr doesn't know.
            assert everything.dtype.char == np.dtype(opened[name].dtype).char
            assert everything.dtype.isnative, name

    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(made)))
        level = data.draw(st.integers(0, len(made[name].levels) - 1))
        whole = made[name].levels[level]
        (_, size_c, _, height, width) = whole.shape
        ys, xs = (
            sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in (height, width)
        )
        channels = data.draw(st.none() | st.lists(st.integers(0, size_c - 1), min_size=1, max_size=4))
        region = Region(ys[0], xs[0], ys[1], xs[1])
        image = readers[name].read(region, level, channels)
        chosen = list(opened[name].channels) if channels is None else channels
        np.testing.assert_array_equal(image, whole[0, chosen, 0][(slice(None), *region.slices)].transpose(1, 2, 0))
        assert image.dtype == whole.dtype
        assert image.flags.c_contiguous
        ts, cs, zs = (
            range(n)[data.draw(st.slices(n).filter(lambda s, n=n: (s.step or 1) > 0 and len(range(n)[s])))]
            for n in whole.shape[:3]
        )
        planes = whole[ts.start : ts.stop : ts.step, cs, zs.start : zs.stop : zs.step]
        np.testing.assert_array_equal(readers[name].fetch(level, ts, cs, zs, region), planes[(..., *region.slices)])

    check()
    for reader in readers.values():
        reader.close()


def read_all(reader: SlideReader, level: int, shape: tuple[int, ...]) -> np.ndarray:
    t, c, z, y, x = shape
    return reader.fetch(level, range(t), range(c), range(z), Region(0, 0, y, x))


def test_settings_choose_plane_and_channels(made: dict[str, Made]) -> None:
    whole = made["imagej"].levels[0]
    slide = inspect_slide(made["imagej"].path, SlideSettings(t=1, z=1, channels=(2, "channel 0")))
    with SlideReader(slide) as reader:
        np.testing.assert_array_equal(
            reader.read(Region(3, 4, 30, 40)), np.moveaxis(whole[1, [2, 0], 1, 3:30, 4:40], 0, 2)
        )
        for wrong in (Region(0, 0, 41, 9), Region(5, 5, 5, 9), Region(-1, 0, 4, 4)):
            with pytest.raises(IndexError):
                reader.read(wrong)


def test_threads_may_share_a_reader(made: dict[str, Made]) -> None:
    with SlideReader(inspect_slide(made["ome-tiff YXS"].path)) as reader, ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda y: reader.read(Region(y, 0, y + 40, 130)), list(range(60)) * 4))
    for y, image in zip(list(range(60)) * 4, read, strict=True):
        np.testing.assert_array_equal(image, made["ome-tiff YXS"].levels[0][0, :, 0, y : y + 40].transpose(1, 2, 0))


def test_only_what_a_region_touches_is_read(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pixels(64, 96), "YX", tile=(32, 32), compression="zlib").path
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[4]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * 40)
    with SlideReader(inspect_slide(path)) as reader:
        reader.read(Region(0, 0, 32, 96))
        reader.read(Region(32, 64, 64, 96))
        with pytest.raises(SlideError, match=r"^a\.tif: level 0, rows 30-40, columns 40-50 can't be decoded \("):
            reader.read(Region(30, 40, 40, 50))


# --- Opening again, by a description that travels.


def test_a_slide_from_another_process_is_read_without_inspecting_it(made: dict[str, Made], monkeypatch) -> None:
    slides = {name: pickle.dumps(inspect_slide(each.path)) for name, each in made.items()}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("inspects the file")

    for target in ("inspect_zarr", "inspect_tiff"):
        monkeypatch.setattr(f"slidesam.tasks.slides.inspect.{target}", refuse)
    for target in ("tifffile.TiffFile", "zarr.open_array", "zarr.open_group"):
        monkeypatch.setattr(target, refuse)
    for name, content in slides.items():
        assert len(content) < 2**14, name
        with SlideReader(pickle.loads(content)) as reader:
            for level, whole in enumerate(made[name].levels):
                np.testing.assert_array_equal(read_all(reader, level, whole.shape), whole, name)


def test_facts_from_json_are_read_after_another_inspection(made: dict[str, Made]) -> None:
    for name in ("generic rgb pyramid", "ome-zarr sharded"):
        slide = Slide.model_validate_json(inspect_slide(made[name].path).model_dump_json())
        assert slide.source is None
        with SlideReader(slide) as reader:
            np.testing.assert_array_equal(read_all(reader, 0, made[name].levels[0].shape), made[name].levels[0])


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=["classic", "bigtiff", "big-endian"]
)
def test_large_tables_stay_in_the_file(tmp_path: Path, options: dict[str, Any]) -> None:
    made = write_tiff(tmp_path / "a.tif", pixels(1600, 1600), "YX", tile=(16, 16), compression="zlib", **options)
    slide = inspect_slide(made.path)
    page = slide.source.levels[0].pages[0]
    assert (page.offsets.numbers, page.sizes.numbers) == (None, None)
    assert len(pickle.dumps(slide)) < 2**12
    with SlideReader(slide) as reader:
        np.testing.assert_array_equal(read_all(reader, 0, made.levels[0].shape), made.levels[0])


def test_tables_that_tifffile_corrects_travel_as_it_corrects_them(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pixels(160, 160), "YX", tile=(16, 16), compression="zlib").path
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offsets, sizes = (np.asarray(table, np.int64) for table in (page.dataoffsets, page.databytecounts))
        spec = make_page_spec(Page(offsets + 1, sizes, None), page)
    assert spec.sizes.numbers is None
    np.testing.assert_array_equal(np.frombuffer(spec.offsets.numbers, np.int64), offsets + 1)


def test_a_description_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch) -> None:
    made = write_tiff(tmp_path / "a.tif", pixels(50, 40, 40), "ZYX", metadata=None, compression="zlib")
    assert inspect_slide(made.path).source is not None
    monkeypatch.setattr("slidesam.tasks.slides.inspect.MAX_CARRIED_BYTES", 2**10)
    slide = inspect_slide(made.path)
    assert slide.source is None
    with SlideReader(slide) as reader:
        np.testing.assert_array_equal(read_all(reader, 0, made.levels[0].shape), made.levels[0])


def test_what_md_gel_files_scale_is_scaled() -> None:
    for transform in (lambda a: a.astype(np.float32) ** 2 * 0.3, lambda a: a.astype(np.float32) * 0.3):
        with tifffile.TiffFile(io.BytesIO(tiff_bytes(pixels(20, 20, dtype="uint8")))) as tiff:
            series = tiff.series[0]
            series.transform = transform
            codec = Codec.of(series.keyframe, series)
            data = tiff.filehandle.read_array(np.uint8, 400, series.keyframe.dataoffsets[0]).tobytes()
        expected = transform(np.frombuffer(data, np.uint8).reshape(1, 20, 20, 1))
        np.testing.assert_array_equal(codec.make_decoder()(data, 0, None), expected)


def tiff_bytes(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, image)
    return stream.getvalue()
