"""The printed lines, run against napari without its window."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import slidesam
from slidesam.tasks.view.napari_lines import write_napari_lines

# napari's own model of a viewer: layers and all they compute, without a window. It is another process, since napari changes much.
WITHOUT_WINDOW = """
import json, sys, napari
from napari.components import ViewerModel
made = []
napari.Viewer = lambda **options: made.append(ViewerModel(**options)) or made[-1]
napari.run = lambda: None
for lines, at in json.load(sys.stdin):
    exec(lines)
    for layer in made[-1].layers:
        finest = layer.data[0] if layer.multiscale else layer.data
        print(type(layer).__name__, layer.name, layer.multiscale, finest.shape, layer.scale.round(3).tolist())
    _, number = made[-1].layers[-1].get_value(at, world=True)
    print(number)
"""


@pytest.mark.slow
def test_the_lines_open_image_and_labels(
    bright_result: slidesam.Result, dark_result: slidesam.Result, tmp_path: Path
) -> None:
    if find_spec("napari") is None:
        pytest.skip("napari is not here: it comes with micro-sam")
    shown, numbers = [], []
    for result in (bright_result, dark_result):
        pixel = [int(result.objects["y"][5].round()), int(result.objects["x"][5].round())]
        numbers.append(result.labels[tuple(pixel)])
        at = [place * size for place, size in zip(pixel, result.slide.mpp, strict=True)]
        shown.append((write_napari_lines(result.store, [result.label]), at))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_WINDOW],
        input=json.dumps(shown), capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Image b True (600, 600, 3) [0.5, 0.5]",
        "Labels cells True (600, 600) [0.5, 0.5]",
        str(numbers[0]),
        *(f"Image {name} False (560, 600) [0.325, 0.325]" for name in ("DAPI", "ramp")),
        "Labels cells True (560, 600) [0.325, 0.325]",
        str(numbers[1]),
    ]
