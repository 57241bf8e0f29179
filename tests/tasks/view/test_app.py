"""What the viewer answers, and to whom."""

from __future__ import annotations

import io
import re
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import slidesam
from slidesam.tasks.errors import OutputError
from slidesam.tasks.segmenters.votes import PATHO_SAM_CLASSES
from slidesam.tasks.stitch.class_table import choose_colour
from slidesam.tasks.view.viewed import ViewedResult
from tests.tasks.view.conftest import ADDRESS, CLASSES, TOKEN, give_classes, open_client, open_viewed
from tests.tasks.view.test_tiles import outline_oracle

LABELS = f"{ADDRESS}/labels/cells"


def read_picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def copy_result(result: slidesam.Result, folder: Path) -> Path:
    shutil.copytree(result.store.parent, folder / "out")
    return folder / "out" / result.store.name


class TestContent:
    def test_tiles_are_pictures_of_pixels_and_outlines(
        self, bright: ViewedResult, bright_result: slidesam.Result
    ) -> None:
        client = open_client(bright)
        tile = client.get(f"{ADDRESS}/image/0/0/1.jpg")
        assert tile.headers["content-type"] == "image/jpeg"
        pixels = bright_result.image[:512, 512:].astype(int)
        assert np.abs(read_picture(tile.content)[..., :3] - pixels).mean() < 3
        tile = client.get(f"{LABELS}/outlines/2/1/0.png")
        assert tile.headers["content-type"] == "image/png"
        drawn = read_picture(tile.content)
        expected = outline_oracle(bright_result.labels[:, :])[512:, :512]
        np.testing.assert_array_equal(drawn[..., 3] > 0, expected)
        assert {tuple(colour) for colour in drawn[expected]} == {(*bright.outline, 255)}

    def test_the_row_of_an_object_is_that_of_the_table(
        self, bright: ViewedResult, bright_result: slidesam.Result
    ) -> None:
        table = pandas.read_parquet(bright_result.store.parent / "b.cells.objects.parquet").set_index(
            "label", drop=False
        )
        client, labels = open_client(bright), bright_result.labels[:, :]
        for number in (1, 37, len(table)):
            y, x = np.argwhere(labels == number)[0]
            for answer in (client.get(f"{LABELS}/objects/{number}"), client.get(f"{LABELS}/at/{y}/{x}")):
                found = answer.json()
                assert found["number"] == number
                values = {name: value for name, value, _ in found["row"]}
                assert values == table.loc[number].to_dict()
                assert found["box"] == table.loc[number, [f"bbox-{axis}" for axis in range(4)]].tolist()
                assert all(meaning for _, _, meaning in found["row"])

    def test_an_outline_has_the_object_s_area(self, bright: ViewedResult) -> None:
        found = open_client(bright).get(f"{LABELS}/objects/37").json()
        areas = [np.array(ring, float) for ring in found["rings"]]
        area = sum(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)) for x, y in (ring.T for ring in areas)) / 2
        assert area == dict(row[:2] for row in found["row"])["area"]

    def test_background_and_numbers_that_arent_there_have_no_row(
        self, bright: ViewedResult, bright_result: slidesam.Result
    ) -> None:
        client = open_client(bright)
        y, x = np.argwhere(bright_result.labels[:, :] == 0)[0]
        for path in (f"at/{y}/{x}", "at/600/0", "objects/0", "objects/99999", f"objects/{2**63}"):
            found = client.get(f"{LABELS}/{path}").json()
            assert (found["row"], found["box"], found["rings"]) == (None, None, []), path

    def test_without_a_table_it_says_how_to_make_one(self, dark: ViewedResult, dark_result: slidesam.Result) -> None:
        client, labels = open_client(dark), dark_result.labels[:, :]
        y, x = np.argwhere(labels > 0)[0]
        found = client.get(f"{LABELS}/at/{y}/{x}").json()
        way = f"slidesam export {dark_result.store} --label cells --format table"
        assert (found["number"], found["row"], found["way_to_table"]) == (labels[y, x], None, way)
        assert found["rings"]
        assert client.get(f"{LABELS}/summary.json").json()["way_to_table"] == way
        assert client.get(f"{LABELS}/density.json").json() is None
        assert client.get(f"{LABELS}/density.png").status_code == 404

    def test_density_is_high_where_objects_are(self, bright: ViewedResult, bright_result: slidesam.Result) -> None:
        client = open_client(bright)
        facts = client.get(f"{LABELS}/density.json").json()
        n_objects, area = bright_result.run["objects"], 0.3 * 0.3
        assert facts["unit"] == "mm²"
        assert n_objects / area < facts["highest"] < 10 * n_objects / area
        picture = read_picture(client.get(f"{LABELS}/density.png").content)
        cell = facts["width"] // picture.shape[1]
        assert picture.shape[:2] == (-(-600 // cell), -(-600 // cell))
        assert bright.labels["cells"].summary.densities[0].counts.sum() == n_objects

    def test_classes_have_the_colours_of_the_outlines_for_qupath_and_can_be_hidden(
        self, bright_result: slidesam.Result, tmp_path: Path
    ) -> None:
        store = copy_result(bright_result, tmp_path)
        give_classes(store)
        client, labels = open_client(open_viewed(store)), bright_result.labels[:512, :512]
        classes = {one["name"]: one for one in client.get(f"{LABELS}/summary.json").json()["classes"]}
        assert sum(one["objects"] for one in classes.values()) == bright_result.run["objects"]
        colours = {name: choose_colour(PATHO_SAM_CLASSES.index(name)) for name in CLASSES}
        assert {name: bytes.fromhex(one["colour"]) for name, one in classes.items()} == {
            name: bytes(colour) for name, colour in colours.items()
        }
        drawn = read_picture(client.get(f"{LABELS}/outlines/2/0/0.png").content)
        hidden = read_picture(client.get(f"{LABELS}/outlines/2/0/0.png?hide={CLASSES[1]}&hide={CLASSES[2]}").content)
        is_outline = outline_oracle(bright_result.labels[:, :])[:512, :512]
        for number, name in enumerate(CLASSES):
            of_class = is_outline & (labels % 3 == number)
            assert of_class.any()
            assert {tuple(colour) for colour in drawn[of_class]} == {(*colours[name], 255)}
            assert (hidden[of_class][:, 3] > 0).all() == (number == 0)
        assert (drawn[~is_outline][:, 3] == 0).all()
        both = client.get(f"{LABELS}/density.json").json()["highest"]
        assert 0 < client.get(f"{LABELS}/density.json?hide={CLASSES[0]}").json()["highest"] < both

    def test_the_page_names_the_slide(self, bright: ViewedResult) -> None:
        page = open_client(bright).get(f"{ADDRESS}/")
        assert "<title>b: cells</title>" in page.text
        info = open_client(bright).get(f"{ADDRESS}/info.json").json()
        assert (info["width"], info["height"], info["mpp"], info["is_rgb"]) == (600, 600, [0.5, 0.5], True)

    def test_channels_are_asked_for_by_the_page(self, dark: ViewedResult) -> None:
        client = open_client(dark)
        only_ramp = read_picture(client.get(f"{ADDRESS}/image/0/0/0.jpg?c=1_ff0000_0_4000").content)
        assert only_ramp[500:].mean(axis=(0, 1))[0] > 200
        assert only_ramp[..., 1:3].max() < 40
        for wrong in (
            "1",
            "7_ff0000_0_1",
            "-1_ff0000_0_1",
            "1_ff00_0_1",
            "0_ffffff_nan_1",
            "0_ffffff_0_x",
            ",".join(["0_ffffff_0_1"] * 9),
        ):
            assert client.get(f"{ADDRESS}/image/0/0/0.jpg?c={wrong}").status_code == 400, wrong


class TestWhoMayAsk:
    def test_who_doesnt_know_the_token_gets_nothing(self, bright: ViewedResult) -> None:
        client = open_client(bright)
        for path in (
            "",
            "info.json",
            "viewer.js",
            "x/",
            f"{TOKEN[:-1]}/",
            f"{TOKEN}x/",
            f"x/{TOKEN}/",
            f"%00{TOKEN}/",
            "é/",
        ):
            answer = client.get(f"http://127.0.0.1/{path}")
            assert (answer.status_code, answer.text) == (404, "Not Found"), path

    def test_other_hosts_are_refused(self, bright: ViewedResult) -> None:
        client = open_client(bright)
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.", "", "[::1]"):
            assert client.get(f"{ADDRESS}/info.json", headers={"host": host}).status_code == 400, host
        for host in ("localhost", "localhost:8000", "127.0.0.1:51234"):
            assert client.get(f"{ADDRESS}/info.json", headers={"host": host}).status_code == 200, host

    def test_only_its_own_files_are_sent(self, bright: ViewedResult) -> None:
        client = open_client(bright)
        for path in (
            "static/", "viewed.py", "index.html", "..%2fviewed.py", "%2e%2e/viewed.py", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/etc/passwd", "..%5cviewed.py", "image/", "image/0/", "image/-1/0/0.jpg", "image/0/9/9.jpg", "image/99/1/0.jpg",
            "labels/", "labels/cells/", "labels/..%2fcells/outlines/0/0/0.png", "labels/%2e%2e/at/0/0", "labels/other/at/0/0",
            "labels/cells/0", "labels/cells/zarr.json",
        ):  # fmt: skip
            assert client.get(f"{ADDRESS}/{path}").status_code == 404, path

    def test_it_only_reads(self, bright: ViewedResult) -> None:
        client = open_client(bright)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, f"{ADDRESS}/info.json").status_code == 405

    def test_the_browser_is_told_to_load_nothing_from_elsewhere(self, bright: ViewedResult) -> None:
        client = open_client(bright)
        for path in ("", "info.json", "viewer.js", "image/0/0/0.jpg", "nothing"):
            headers = client.get(f"{ADDRESS}/{path}").headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers
        for name in ("index.html", "viewer.js", "viewer.css"):
            text = (files("slidesam.tasks.view") / "static" / name).read_text()
            assert re.findall(r"https?://(?!www\.w3\.org)|(?<!:)//[a-z]", text) == [], name


class TestWhatGoesWrong:
    def test_a_damaged_shard_costs_its_tiles_only(self, bright_result: slidesam.Result, tmp_path: Path) -> None:
        store = copy_result(bright_result, tmp_path)
        viewed, messages = open_viewed(store), []
        client = open_client(viewed, messages)
        (shard,) = [
            path for path in (store / "labels" / "cells" / "0").rglob("*") if path.is_file() and path.suffix != ".json"
        ]
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 4
        shard.write_bytes(content)
        answers = [client.get(f"{LABELS}/outlines/2/{row}/0.png") for row in (0, 1, 0, 1)]
        failed = [answer for answer in answers if answer.status_code == 500]
        assert failed
        assert f"{shard} is damaged: `slidesam verify --repair` takes it back" in failed[0].text
        assert len(messages) == 1
        assert shard.read_bytes() == content
        assert client.get(f"{LABELS}/outlines/3/0/0.png").status_code == 200
        assert client.get(f"{ADDRESS}/image/0/0/0.jpg").status_code == 200

    def test_a_damaged_table_costs_rows_only(self, bright_result: slidesam.Result, tmp_path: Path) -> None:
        store = copy_result(bright_result, tmp_path)
        client = open_client(open_viewed(store))
        (store.parent / "b.cells.objects.parquet").write_bytes(b"PAR1 but no more")
        for path in ("objects/1", "summary.json", "density.json"):
            answer = client.get(f"{LABELS}/{path}")
            assert answer.status_code == 500
            assert (
                "b.cells.objects.parquet is damaged or gone: remove it, then `slidesam export` writes it again"
                in answer.text
            )
        assert client.get(f"{LABELS}/outlines/2/0/0.png").status_code == 200

    def test_a_result_that_is_written_again_isnt_mixed_with_the_old_one(
        self, bright_result: slidesam.Result, tmp_path: Path
    ) -> None:
        store = copy_result(bright_result, tmp_path)
        client = open_client(open_viewed(store))
        assert client.get(f"{LABELS}/at/1/1").status_code == 200
        (store.parent / "b.cells.run.json").touch()
        answer = client.get(f"{LABELS}/at/1/1")
        assert (answer.status_code, "start it again" in answer.text) == (409, True)

    def test_nothing_is_written(self, bright_result: slidesam.Result) -> None:
        def look() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in bright_result.store.parent.rglob("*")}

        before = look()
        client = open_client(open_viewed(bright_result.store))
        for path in (
            "image/0/0/0.jpg",
            "labels/cells/outlines/2/0/0.png",
            "labels/cells/density.png",
            "labels/cells/at/5/5",
        ):
            assert client.get(f"{ADDRESS}/{path}").status_code == 200
        assert look() == before

    def test_where_the_slide_is_gone_the_overview_is_shown_and_said(
        self, dark_result: slidesam.Result, tmp_path: Path
    ) -> None:
        store = copy_result(dark_result, tmp_path)
        assert "Full resolution is read from" in open_viewed(store).notes[0]
        slide = dark_result.slide.path
        hidden = slide.rename(slide.with_suffix(".away"))
        try:
            viewed = open_viewed(store)
        finally:
            hidden.rename(slide)
        assert viewed.notes[0].startswith("The image is an overview, one pixel for 4 × 4 of the slide")
        tile = read_picture(open_client(viewed).get(f"{ADDRESS}/image/0/0/0.jpg?c=1_ff0000_0_4000").content)
        expected = dark_result.image[:512, :512, 1] / 4000 * 255
        assert np.abs(tile[..., 0] - expected).mean() < 3

    def test_a_result_without_its_label_image_is_refused(self, bright_result: slidesam.Result, tmp_path: Path) -> None:
        store = copy_result(bright_result, tmp_path)
        shutil.rmtree(store / "labels")
        with pytest.raises(OutputError, match="no finished label image cells: segment the slide again"):
            open_viewed(store)

    def test_a_store_without_an_image_needs_the_slide(self, bright_result: slidesam.Result, tmp_path: Path) -> None:
        store = copy_result(bright_result, tmp_path)
        shutil.rmtree(store / "0")
        assert "read from" in open_viewed(store).notes[0]
        slide = bright_result.slide.path
        hidden = slide.rename(slide.with_suffix(".away"))
        try:
            with pytest.raises(OutputError, match="has no image, and the slide can't be read"):
                open_viewed(store)
        finally:
            hidden.rename(slide)
