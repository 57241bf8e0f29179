"""The command as a person meets it: exit codes, one-line errors, what is left behind, the history afterwards."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import yaml

from slidesam.tasks.settings.parse import make_settings
from tests.support import ROOT
from tests.support.prefect_fixtures import copy_database
from tests.support.slides import write_numbered_slide


def called(home: Path, *arguments: object, **environment: str) -> dict:
    """How to run the command with its own PREFECT_HOME and no server to talk to."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    env = {**kept, "PREFECT_HOME": str(home), "COLUMNS": "200", "PYTHONPATH": str(ROOT), **environment}
    return {"args": [str(Path(sys.executable).with_name("slidesam")), *map(str, arguments)], "env": env, "text": True}


def slidesam(*arguments: object, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**called(home, *arguments, **environment), capture_output=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory, made_database: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    if made_database.exists():
        copy_database(made_database, home / "prefect.db")
    return home


def errors_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr + result.stdout
    return [line for line in result.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("command", [[], ["segment"], ["inspect"], ["status"], ["seams"], ["settings"], ["demo"]])
def test_help_answers(command, home) -> None:
    result = slidesam(*command, "--help", home=home)
    assert result.returncode == 0
    assert "Usage: slidesam" in result.stdout


def test_help_is_quick_because_it_loads_no_prefect() -> None:
    code = (
        "import sys, slidesam.flows.cli.app; print({'prefect', 'dask', 'zarr', 'skimage', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["segment"], 2, "Missing argument"),
        (["segment", "a.svs"], 2, "--output"),
        (["segment", "a.svs", "--output", "o", "--set", "blocks.halo"], 2, "a.b=c"),
        (["segment", "a.svs", "--output", "o", "--set", "blocks.hallo=3"], 1, "blocks.hallo: did you mean blocks.halo?"),
        (["segment", "a.svs", "--output", "o", "--set", "blocks.halo=wide"], 1, "setting blocks.halo"),
        (["segment", "a.svs", "--output", "o", "--segmenter", "ilastik"], 1, "segmenter.kind"),
        (["segment", "a.svs", "--output", "o", "--settings", "none.yaml"], 1, "none.yaml"),
        (["inspect", "no-such.svs"], 1, "no-such.svs"),
        (["status", "no-such-folder"], 1, "no-such-folder"),
        (["seams", "no-such.ome.zarr"], 1, "no-such.ome.zarr is not a result"),
    ],
)  # fmt: skip
def test_wrong_usage_and_settings(arguments, code, words, home, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = slidesam(*arguments, home=home)
    assert result.returncode == code
    assert words in result.stderr
    if code == 1:
        assert len(errors_of(result)) == 1
    assert list(tmp_path.iterdir()) == []


def test_printed_settings_are_the_settings(home, tmp_path) -> None:
    printed = slidesam("settings", "--segmenter", "watershed", "--set", "blocks.halo=64", home=home).stdout
    assert make_settings(yaml.safe_load(printed)) == make_settings(
        overrides={"segmenter.kind": "watershed", "blocks.halo": 64}
    )
    comments = [line for line in printed.splitlines() if line.lstrip().startswith("#")]
    values = [line for line in printed.splitlines() if ": " in line and not line.lstrip().startswith("#")]
    assert len(comments) > len(values)


def test_inspect_says_what_it_is_and_what_would_be_done(home, tmp_path) -> None:
    slide = write_numbered_slide(tmp_path / "n.tif")
    result = slidesam(
        "inspect", slide, "--segmenter", "watershed", "--set", "blocks.block_shape=64", "-o", tmp_path, home=home
    )
    assert result.returncode == 0
    for words in (
        "192 × 192 px",
        "uint8",
        "9 (3 × 3) of 64 × 64 px",
        "unknown",
        "segment: from the start (nothing is there yet)",
        "converts 1 tile",
    ):
        assert words in result.stdout


def test_inspect_shows_the_plan_that_segment_has(home, tmp_path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for number, level in enumerate((image, image[::2, ::2])):
            tiff.write(level, subfiletype=int(number > 0), tile=(64, 64), metadata=None)
    result = slidesam("inspect", tmp_path / "a.tif", "--segmenter", "watershed", "-o", tmp_path, home=home)
    assert "coarse levels (1) take single pixels" in " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.slow
def test_bad_slides_cost_the_good_one_nothing(home, tmp_path) -> None:
    good = write_numbered_slide(tmp_path / "good.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.svs").write_text("not an image")
    whole = good.read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(tmp_path / "zero.tif", np.zeros((0, 5), np.uint8))
    (tmp_path / "twin").mkdir()
    write_numbered_slide(tmp_path / "twin" / "pair.tif")
    write_numbered_slide(tmp_path / "pair.ome.tif")
    bad = ["empty.tif", "text.svs", "cut.tif", "zero.tif", "gone.tif", "pair.ome.tif", "twin/pair.tif"]
    output = tmp_path / "out"
    result = slidesam(
        "segment", *(tmp_path / name for name in bad), good, "-o", output, "--segmenter", "watershed",
        "--set", "blocks.block_shape=64", "--set", "blocks.halo=16", "--set", "segmenter.threshold=0.5", "--workers", 1,
        home=home,
    )  # fmt: skip
    assert result.returncode == 1
    errors = errors_of(result)
    assert len(errors) == len(bad)
    for name, error in zip(bad, errors, strict=True):
        assert Path(name).name in error
    assert "✓ good: 9 cells" in result.stdout
    assert "1 of 8 slides finished" in result.stdout
    assert sorted(path.name for path in output.glob("[!.]*")) == [
        "good.cells.files.json",
        "good.cells.objects.geojson.gz",
        "good.cells.objects.json",
        "good.cells.objects.parquet",
        "good.cells.overlay.png",
        "good.cells.report.html",
        "good.cells.run.json",
        "good.image-files.json",
        "good.ome.zarr",
        "report.html",
    ]
    shown = slidesam("status", output, home=home).stdout
    assert "9 of 9" in shown
    assert shown.count("failed") >= 5

    with sqlite3.connect(home / "prefect.db") as history:
        flows = dict(history.execute("select name, state_type from flow_run").fetchall())
        tasks = history.execute("select name, state_type from task_run where name like 'block %'").fetchall()
    assert flows["good · watershed"] == "COMPLETED"
    assert flows["empty · watershed"] == "FAILED"
    assert [state for _, state in tasks] == ["COMPLETED"] * 9
    assert "Error logging to API" not in result.stderr


def test_an_api_that_does_not_answer_is_named(home, tmp_path) -> None:
    slide = write_numbered_slide(tmp_path / "n.tif")
    result = slidesam("segment", slide, "-o", tmp_path / "out", home=home, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert result.returncode == 1
    (error,) = errors_of(result)
    assert "http://127.0.0.1:9/api" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stopped_run_leaves_no_process_and_the_same_command_finishes_it(home, prefect_server, tmp_path) -> None:
    """tests/benchmarks/test_chaos.py kills one."""
    slide, log, output = write_numbered_slide(tmp_path / "long.tif", 5, 5), tmp_path / "log", tmp_path / "out"
    options = f"{{log: {log}, seconds: 0.3}}"
    command = called(
        home, "segment", slide, "-o", output, "--segmenter", "function",
        "--set", "segmenter.target=tests.support.faults:bright_pieces",
        "--set", f"segmenter.options={options}", "--set", "blocks.block_shape=64", "--set", "blocks.halo=0",
    )  # fmt: skip
    with subprocess.Popen(
        **command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        while not log.exists() or len(log.read_text().splitlines()) < 8:
            assert process.poll() is None
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        # Ctrl-C reaches all processes of the terminal.
        os.killpg(process.pid, signal.SIGINT)
        words, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in words
    assert psutil.wait_procs(family, timeout=120)[1] == []
    assert "stopped" in slidesam("status", output, home=home).stdout

    done = len(list(output.glob(".slidesam/long/cells/segment-*/blocks/[0-9]*.arrays")))
    # Its own server was among what ended; the tests' is as good for the rest, and runs already.
    command["env"] |= {"PREFECT_API_URL": prefect_server}
    finished = subprocess.run(**command, capture_output=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "25 cells" in finished.stdout
    # What had its mark was not done again: besides 25 blocks, the log holds at most the two that were under way.
    assert done >= 5
    assert 25 <= len(log.read_text().splitlines()) <= 27
