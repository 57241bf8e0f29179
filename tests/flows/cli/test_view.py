"""`slidesam view`: started and ended as a person does it, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

import slidesam
from slidesam.flows.cli import view
from slidesam.flows.cli.app import app
from slidesam.tasks.errors import SettingsError
from tests.flows.cli.test_app import called, home
from tests.support.slides import write_numbered_slide

__all__ = ["home"]
SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16, "segmenter.threshold": 0.5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    slide = write_numbered_slide(folder / "s.tif")
    return slidesam.segment(slide, folder / "out", SETTINGS | {"output.formats": []}, progress=False).store


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_shows_a_result_until_ctrl_c(home: Path, store: Path, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    # Reading waits until the browser is started.
    os.mkfifo(opened)
    browser.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {opened}\n')
    browser.chmod(0o700)
    options = called(home, "view", store, BROWSER=f"{browser} %s", DISPLAY=":0")
    process = subprocess.Popen(**options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        address, advice = (process.stdout.readline().strip() for _ in range(2))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", address)
        assert b"<title>s: cells</title>" in urllib.request.urlopen(address, timeout=60).read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address[:-2] + "/", timeout=60)
        # What other users see of the browser's command names a file that they can't read.
        page = Path(opened.read_text().strip().removeprefix("file://"))
        assert address in page.read_text()
        assert page.parent.stat().st_mode & 0o077 == 0
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert advice == "Ctrl-C ends it. Only who knows this address can see the slide."
    assert (output, errors) == ("", "")
    assert not page.parent.exists()


def test_a_port_that_is_in_use_is_refused_and_by_default_a_free_one_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port} can't be used .*: choose another, or leave it out"):
            view._listen(port)
        with view._listen(None) as listener:
            host, chosen = listener.getsockname()
    assert host == "127.0.0.1"
    assert chosen != port


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "is not a result: give <name>.ome.zarr"),
        ("nothing.ome.zarr", "is not a result"),
        ("s.tif", "is not a result"),
    ],
)
def test_what_is_no_result_is_refused(store: Path, path: str, message: str) -> None:
    done = CliRunner().invoke(app, ["view", str(store.parents[1] / path)])
    assert isinstance(done.exception, SettingsError)
    assert message in str(done.exception)


def test_a_result_without_its_label_image_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "s.ome.zarr").mkdir()
    (tmp_path / "s.cells.run.json").write_bytes((store.parent / "s.cells.run.json").read_bytes())
    done = CliRunner().invoke(app, ["view", str(tmp_path / "s.ome.zarr")])
    assert "has no finished label image cells: segment the slide again" in str(done.exception)


def test_lines_for_napari_are_python(store: Path) -> None:
    done = CliRunner().invoke(app, ["view", str(store), "--lines"])
    assert done.exit_code == 0
    compile(done.stdout, "lines", "exec")
    assert f"slidesam.open_result({str(store)!r}, label='cells')" in done.stdout
