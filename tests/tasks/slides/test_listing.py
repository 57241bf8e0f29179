"""Which slides are meant: files, folders, patterns, manifests, and what is wrong with one of them costs no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.listing import list_slides, slides_in
from tests.support.slides import write_numbered_slide

SETTINGS = make_settings(overrides={"blocks.halo": 32})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.tif", "a.tif", ".hidden.tif", "copying.svs.part", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "plate.zarr").mkdir()
    (folder / "plate.zarr" / "zarr.json").write_text("{}")
    (folder / "deeper").mkdir()
    write_numbered_slide(folder / "deeper" / "c.tif")
    return folder


def names(*named: str) -> list[str]:
    return [slide.path.name for slide in list_slides(named, SETTINGS) if slide.error is None]


def test_a_folder_means_its_slides_by_name_and_no_others(scans: Path) -> None:
    assert [path.name for path in slides_in(scans)] == ["a.tif", "b.tif", "plate.zarr"]
    assert names(str(scans)) == ["a.tif", "b.tif", "plate.zarr"]


def test_a_slide_is_itself_even_where_there_is_none(scans: Path) -> None:
    assert names(str(scans / "plate.zarr")) == ["plate.zarr"]
    # Opening it says what is wrong, for one slide as for many.
    assert names(str(scans / "no-such.svs")) == ["no-such.svs"]


def test_a_folder_with_one_zarr_store_is_that_slide(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "single").mkdir()
    (scans / "plate.zarr").rename(tmp_path / "single" / "0.zarr")
    assert names(str(tmp_path / "single")) == ["single"]


def test_patterns_find_slides_only_and_in_deeper_folders_if_asked(scans: Path) -> None:
    assert names(f"{scans}/*") == ["a.tif", "b.tif", "plate.zarr"]
    assert names(f"{scans}/**/*.tif") == ["a.tif", "b.tif", "c.tif"]


def test_a_slide_that_is_named_twice_is_one(scans: Path) -> None:
    assert names(str(scans / "a.tif"), f"{scans}/*.tif", str(scans)) == ["a.tif", "b.tif", "plate.zarr"]


def test_a_manifest_names_slides_and_settings(scans: Path, tmp_path: Path) -> None:
    manifest = scans / "list.csv"
    manifest.write_text(
        "path,name,blocks.halo,segmenter.kind,segmenter.diameter\n"
        "a.tif,,,,\n\n"
        "b.tif,second,64,watershed,12.5\n"
        f"{tmp_path / 'elsewhere.svs'},,,,\n"
    )
    first, second, third = list_slides([str(manifest)], SETTINGS)
    assert (first.path, first.name, first.settings) == (scans / "a.tif", "a", SETTINGS)
    assert (second.name, second.settings.blocks.halo) == ("second", 64)
    assert second.settings.segmenter.diameter == 12.5
    assert third.path == tmp_path / "elsewhere.svs"


@pytest.mark.parametrize("text", ["\ufeffpath;blocks.halo\r\na.tif;64\r\n", "path\tblocks.halo\na.tif\t64\n"])
def test_manifests_of_spreadsheet_programs_are_read(scans: Path, text: str) -> None:
    (scans / "list.csv").write_bytes(text.encode())
    (slide,) = list_slides([str(scans / "list.csv")], SETTINGS)
    assert slide.error is None
    assert slide.settings.blocks.halo == 64


def test_a_bad_line_of_a_manifest_is_named_and_costs_no_other(scans: Path) -> None:
    manifest = scans / "list.csv"
    manifest.write_text("path,blocks.halo,blocks.hallo\na.tif,-5,\nb.tif,,7\n,3,\nplate.zarr,16,\n")
    slides = list_slides([str(manifest)], SETTINGS)
    assert [slide.error is None for slide in slides] == [False, False, False, True]
    assert "line 2: setting blocks.halo" in slides[0].error
    assert "line 3: unknown setting blocks.hallo: did you mean blocks.halo?" in slides[1].error
    assert "line 4: there is no path" in slides[2].error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,halo\na.tif,3\n", "no column `path` in its first line: file, halo"),
        ("", "no column `path` in its first line: empty"),
        ("path\n\n", "names no slide below its first line"),
        (None, "can't be read"),
        (b"path\n\xff\xfe", "isn't UTF-8 text"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    manifest = tmp_path / "list.csv"
    if text is not None:
        manifest.write_bytes(text if isinstance(text, bytes) else text.encode())
    (slide,) = list_slides([str(manifest)], SETTINGS)
    assert slide.error.startswith(f"manifest {manifest}")
    assert said in slide.error


def test_slides_whose_results_would_bear_one_name_are_refused_unless_they_are_given_names(scans: Path) -> None:
    (scans / "deeper" / "a.tif").write_bytes(b"x")
    slides = list_slides([f"{scans}/**/*.tif"], SETTINGS)
    assert [slide.path.name for slide in slides if slide.error is None] == ["b.tif", "c.tif"]
    twins = [slide.error for slide in slides if slide.error is not None]
    assert all("2 slides are named a" in error for error in twins)
    (scans / "list.csv").write_text("path,name\na.tif,a\ndeeper/a.tif,deep a\n")
    assert [slide.name for slide in list_slides([str(scans / "list.csv")], SETTINGS)] == ["a", "deep a"]
    assert all(slide.error is None for slide in list_slides([str(scans / "list.csv")], SETTINGS))


def test_two_labels_of_a_slide_are_two_and_two_settings_for_one_label_are_refused(scans: Path) -> None:
    manifest = scans / "list.csv"
    manifest.write_text("path,output.label\na.tif,cells\na.tif,nuclei\n")
    assert [slide.error for slide in list_slides([str(manifest)], SETTINGS)] == [None, None]
    manifest.write_text("path,blocks.halo\na.tif,16\na.tif,32\na.tif,16\n")
    assert ["2 slides are named a" in slide.error for slide in list_slides([str(manifest)], SETTINGS)] == [True, True]


def test_a_name_that_looks_like_a_home_is_a_name(scans: Path) -> None:
    (scans / "~$a.tif").write_bytes(b"x")
    (scans / "list.csv").write_text("path\n~$a.tif\n")
    for named in ("list.csv", "~$a.tif"):
        (slide,) = list_slides([str(scans / named)], SETTINGS)
        assert slide.error is None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 300])
def test_names_that_are_no_file_names_are_refused(scans: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"slide\.name"):
        make_settings(overrides={"slide.name": name})


def test_nothing_is_said_of_what_isnt_there(tmp_path: Path) -> None:
    (empty,) = list_slides([str(tmp_path)], SETTINGS)
    assert "holds no slides" in empty.error
    (none,) = list_slides([f"{tmp_path}/*.svs"], SETTINGS)
    assert "matches no slide" in none.error
    with pytest.raises(SettingsError, match="no slides are given"):
        list_slides(["", " "], SETTINGS)


def test_a_line_end_in_quotes_belongs_to_its_cell(scans: Path) -> None:
    manifest = scans / "slides.csv"
    manifest.write_bytes(b'path,note\r\na.tif,"two\r\nlines"\r\n"odd\nname.tif",x\r\nb.tif\r\n')
    slides = list_slides([str(manifest)], SETTINGS)
    assert [slide.path.name for slide in slides] == ["a.tif", "odd\nname.tif", "b.tif"]
    manifest.write_bytes(b'path,blocks.halo\n"odd\n.tif",1\na.tif,x\n')
    assert f"manifest {manifest}, line 4: " in str(list_slides([str(manifest)], SETTINGS)[1].error)
