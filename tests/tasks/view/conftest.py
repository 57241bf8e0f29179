"""Two small results, segmented once: a bright-field slide that is converted, and fluorescence that is read in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from starlette.testclient import TestClient

import slidesam
from slidesam.flows.cli.finished import finished_runs
from slidesam.tasks.folder.demo import demo_image
from slidesam.tasks.pixels import pyramid
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.view.app import make_app
from slidesam.tasks.view.viewed import ViewedResult

SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 256, "blocks.halo": 48, "slide.mpp": 0.5}
TOKEN = "token-of-this-test"
ADDRESS = f"http://127.0.0.1/{TOKEN}"


def open_client(viewed: ViewedResult, messages: list[str] | None = None) -> TestClient:
    report = (lambda message: None) if messages is None else messages.append
    return TestClient(make_app(viewed, TOKEN, report), base_url=f"{ADDRESS}/")


def open_viewed(store: Path) -> ViewedResult:
    return ViewedResult(store.parent, finished_runs(store))


@pytest.fixture(scope="session")
def bright_result(tmp_path_factory: pytest.TempPathFactory) -> slidesam.Result:
    """600 × 600 px of red, green and blue, 0.5 µm: two rows and two columns of tiles."""
    folder = tmp_path_factory.mktemp("bright")
    tifffile.imwrite(folder / "b.tif", demo_image(600), tile=(256, 256), photometric="rgb")
    return slidesam.segment(folder / "b.tif", folder / "out", SETTINGS | {"output.formats": ["table"]}, progress=False)


@pytest.fixture(scope="session")
def dark_result(tmp_path_factory: pytest.TempPathFactory) -> slidesam.Result:
    """Two channels of 16 bit, 560 × 600 px, read in place: the store holds an overview of at most 256 px. Without a table."""
    folder = tmp_path_factory.mktemp("dark")
    grey = 255 - demo_image(600)[:560].min(axis=2)
    planes = np.stack([grey.astype(np.uint16) * 9 + 100, np.linspace(0, 4000, grey.size).reshape(grey.shape)])
    tifffile.imwrite(
        folder / "d.ome.tif", planes.astype(np.uint16), tile=(256, 256),
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "ramp"]}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "OVERVIEW_SIDE", 256)
        settings = SETTINGS | {"output.formats": [], "image.convert": "never", "slide.mpp": 0.325}
        return slidesam.segment(folder / "d.ome.tif", folder / "out", settings, progress=False)


CLASSES = ("neoplastic", "inflammatory", "connective")


def give_classes(store: Path, label: str = "cells") -> None:
    """Make a result one of a segmenter with classes: object k is of class k modulo 3."""
    paths = RunPaths.of_store(store, label)
    record = Provenance.read(paths.provenance)
    segmenter = MicroSam(classes="semantic").model_dump(mode="json")
    record.model_copy(update={"settings": record.settings | {"segmenter": segmenter}}).write(paths.provenance)
    table = pq.read_table(paths.objects("parquet"))
    names = pa.array([CLASSES[number % 3] for number in table["label"].to_pylist()])
    pq.write_table(table.append_column("class", names), paths.objects("parquet"), row_group_size=50)


@pytest.fixture(scope="session")
def bright(bright_result: slidesam.Result) -> ViewedResult:
    return open_viewed(bright_result.store)


@pytest.fixture(scope="session")
def dark(dark_result: slidesam.Result) -> ViewedResult:
    return open_viewed(dark_result.store)
