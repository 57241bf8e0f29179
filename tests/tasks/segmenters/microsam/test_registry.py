"""micro-sam's weights: fetched whole or not at all, checked before they are loaded, and enough for a run without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tifffile
from skimage.data import immunohistochemistry

from slidesam.flows.cli.models import _PURPOSES
from slidesam.tasks.errors import SegmenterError, SettingsError
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.segmenters.microsam import registry as models
from slidesam.tasks.segmenters.microsam.registry import MODELS, OVERRIDES, Registered, cache_folder, files_of, registry
from slidesam.tasks.segmenters.microsam.weights import model_identity
from slidesam.tasks.settings.methods import MicroSam
from tests.flows.cli.test_app import called, errors_of
from tests.flows.cli.test_app import slidesam as run_slidesam
from tests.support import ROOT
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.slides import write_numbered_slide

xxhash = pytest.importorskip("xxhash")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("micro_sam") is None, reason="micro_sam is not installed")
microsam = [*MICROSAM_MARKS]
ENCODER, DECODER = b"encoder" * 500_000, b"decoder" * 1000
CONTENTS = {"vit_b_lm": ENCODER, "vit_b_lm_decoder": DECODER}


class Mirror:
    """A server on loopback and the registry that names it; what it answers can be changed.

    Attributes:
        contents: What it sends for each file.
        fault: None, or "404", "cut" (closes the connection half way), "slow" (sends half, then nothing).
        asked: Files that it was asked for, in order.
    """

    def __init__(self, folder: Path, contents: dict[str, bytes]) -> None:
        self.contents, self.fault, self.asked = dict(contents), None, []
        self.let_go = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.file = folder / "registry.txt"
        self.register(contents)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def register(self, contents: dict[str, bytes]) -> None:
        lines = [f"{name} xxh128:{xxhash.xxh128_hexdigest(data)} {self.url}/{name}" for name, data in contents.items()]
        self.file.write_text("# a mirror\n" + "\n".join(lines) + "\n")

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.strip("/")
        self.asked.append(name)
        if self.fault == "404":
            request.send_error(404)
            return
        data = self.contents[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data if self.fault is None else data[: len(data) // 2])
        if self.fault == "slow":
            self.let_go.wait(60)

    def stop(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    started = Mirror(tmp_path, CONTENTS)
    yield started
    started.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """micro-sam's cache of this test, empty; its folder of models isn't there yet."""
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fetched(cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models with what the mirror's registry names, put there by hand."""
    monkeypatch.setenv(OVERRIDES, str(mirror.file))
    (cache / "models").mkdir(parents=True)
    for name, data in CONTENTS.items():
        (cache / "models" / name).write_bytes(data)
    return cache / "models"


@pytest.fixture
def slidesam(tmp_path: Path, mirror: Mirror):
    """The command, with the mirror's registry and no proxy."""
    return partial(run_slidesam, home=tmp_path / "home", **{OVERRIDES: str(mirror.file), "NO_PROXY": "127.0.0.1"})


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class TestRegistry:
    def test_every_model_has_its_files_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pooch")
        monkeypatch.delenv(OVERRIDES, raising=False)
        known = registry()
        for model in MODELS:
            for file in files_of(model):
                assert known[file].algorithm == "xxh128"
                assert len(known[file].digest) == 32
                assert known[file].url.startswith("https://")
        # And those that it has beside them are of the family that needs mobile_sam.
        files = {file for model in MODELS for file in files_of(model)}
        assert all(name.startswith("vit_t") for name in known.keys() - files)

    def test_every_model_is_for_something(self) -> None:
        assert {model[len("vit_b") :] for model in MODELS} == _PURPOSES.keys()

    def test_reading_it_is_light(self) -> None:
        code = (
            "import sys; from slidesam.tasks.segmenters.microsam.registry import registry; assert registry();"
            "print({'torch', 'micro_sam', 'napari'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
        assert done.stdout == "set()\n"

    @pytest.mark.parametrize("source", ["def models(): return {}", "def models(: {", "m = {'a': 'sha256:0011'}", "\0"])
    def test_of_a_micro_sam_that_keeps_it_otherwise_is_empty(self, source: str, tmp_path: Path) -> None:
        (tmp_path / "util.py").write_text(source)
        assert models._registry_in(tmp_path / "util.py") == {}
        assert models._registry_in(tmp_path / "none.py") == {}

    def test_is_read_where_it_stands_in_other_words(self, tmp_path: Path) -> None:
        (tmp_path / "util.py").write_text(
            "def models():\n    return make({'a': 'sha256:00112233445566778899', 'b': name},\n"
            "                urls={'a': 'https://there/a', **more}, path='x')\n"
        )
        assert models._registry_in(tmp_path / "util.py") == {
            "a": Registered("sha256:00112233445566778899", "https://there/a")
        }

    def test_lines_of_ones_own_go_before_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = registry()
        monkeypatch.setenv(OVERRIDES, str(tmp_path / "mine.txt"))
        (tmp_path / "mine.txt").write_text(f"vit_b {'0' * 64}\nvit_l sha256:{'1' * 64} http://mirror/l\n")
        changed = {key: entry for key, entry in registry().items() if entry != theirs[key]}
        assert changed == {
            "vit_b": Registered("0" * 64, theirs["vit_b"].url),
            "vit_l": Registered(f"sha256:{'1' * 64}", "http://mirror/l"),
        }
        assert changed["vit_b"].algorithm == "sha256"
        (tmp_path / "mine.txt").write_text("vit_b\n")
        with pytest.raises(SettingsError, match=r"SLIDESAM_MODELS names .*mine.txt, which can't be used"):
            registry()

    def test_a_model_that_there_is_not(self) -> None:
        with pytest.raises(SettingsError, match=r"no model 'cyto3'.*vit_b_lm"):
            files_of("cyto3")


class TestIdentity:
    """What is asked before a run, and by each worker before it loads weights. Without torch."""

    def test_of_the_registered_files(self, fetched: Path) -> None:
        content = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in CONTENTS.values()))
        assert model_identity(MicroSam(), is_rgb=False) == f"vit_b_lm sha256:{content.hexdigest()}"

    @pytest.mark.parametrize("file", CONTENTS)
    def test_another_file_is_refused(self, file: str, fetched: Path) -> None:
        # Of the same size, so that only its hash can tell.
        (fetched / file).write_bytes(CONTENTS[file][:-1] + b"!")
        with pytest.raises(SegmenterError) as raised:
            model_identity(MicroSam(), is_rgb=False)
        for words in (str(fetched / file), "isn't loaded", "xxh128:", "`slidesam models fetch vit_b_lm`"):
            assert words in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_file_that_changes_afterwards_is_refused(self, fetched: Path) -> None:
        model_identity(MicroSam(), is_rgb=False)
        (fetched / "vit_b_lm").write_bytes(ENCODER[::-1])
        with pytest.raises(SegmenterError, match="isn't loaded"):
            model_identity(MicroSam(), is_rgb=False)

    def test_each_file_is_read_once(self, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, really = [], Path.open

        def counted(path: Path, *arguments: object, **more: object):
            opened.append(path.name)
            return really(path, *arguments, **more)

        monkeypatch.setattr(Path, "open", counted)
        for _ in range(3):
            model_identity(MicroSam(), is_rgb=False)
        assert [name for name in opened if name in CONTENTS] == list(CONTENTS)

    def test_a_checkpoint_of_ones_own_can_be_anything(self, fetched: Path) -> None:
        (fetched / "vit_b").write_bytes(b"mine")
        own = MicroSam(model="vit_b", checkpoint=str(fetched / "vit_b"))
        assert model_identity(own, is_rgb=False).startswith("checkpoint sha256:")
        with pytest.raises(SegmenterError, match="isn't loaded"):
            model_identity(MicroSam(model="vit_b"), is_rgb=False)

    @pytest.mark.parametrize("known", [{}, {name: Registered("whirlpool9:00112233445566778899") for name in CONTENTS}])
    def test_what_cannot_be_checked_is_said_not_refused(
        self,
        known: dict[str, Registered],
        fetched: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("slidesam.tasks.segmenters.microsam.weights.registry", lambda: known)
        with caplog.at_level(logging.WARNING):
            assert model_identity(MicroSam(), is_rgb=False).startswith("vit_b_lm sha256:")
        assert f"finds no hash of {fetched / 'vit_b_lm'}" in caplog.text

    def test_missing_ones_name_the_cure(self, cache: Path) -> None:
        with pytest.raises(
            SegmenterError, match="`slidesam models fetch vit_b_histopathology --cache FOLDER`"
        ) as raised:
            model_identity(MicroSam(), is_rgb=True)
        assert "set MICROSAM_CACHEDIR=FOLDER here and for the workers" in str(raised.value)


class TestFetch:
    def test_then_list_and_verify(self, slidesam, cache: Path, mirror: Mirror) -> None:
        umask = os.umask(0o022)
        try:
            done = slidesam("models", "fetch", "vit_b_lm", "vit_b_lm")
        finally:
            os.umask(umask)
        assert (done.returncode, done.stderr) == (0, "")
        assert "vit_b_lm: fetched, 3.5 MB, its hash is right" in done.stdout
        assert done.stdout.endswith(f"export MICROSAM_CACHEDIR={cache}\n")
        assert {name: (cache / "models" / name).read_bytes() for name in names_in(cache / "models")} == CONTENTS
        # Others than who fetched them can read them: the cache is shared.
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (cache / "models").iterdir())
        again = slidesam("models", "fetch", "vit_b_lm")
        assert "vit_b_lm: whole" in again.stdout
        assert mirror.asked == list(CONTENTS)

        listed = slidesam("models", "list").stdout.splitlines()
        shown = {line.split()[0]: line for line in listed if line.startswith("vit_")}
        assert shown.keys() == MODELS.keys()
        assert shown["vit_b_lm"].split()[1:3] == ["B", "yes"]
        assert "light microscopy" in shown["vit_b_lm"]
        assert shown["vit_b_lm"].split()[-3:] == ["yes", "4", "MB"]
        assert shown["vit_h"].split()[-4:] == ["no", "≈", "2,565", "MB"]
        assert any(
            "vit_b_histopathology for bright-field RGB slides, vit_b_lm for all others" in line for line in listed
        )
        assert slidesam("models", "verify").returncode == 0
        assert slidesam("models", "verify", "vit_b_lm").returncode == 0

    def test_verify_finds_what_is_wrong_and_what_is_missing(self, slidesam, fetched: Path) -> None:
        (fetched / "vit_b_lm_decoder").unlink()
        (fetched / "tmpab12cd34").write_bytes(b"half")
        partly = slidesam("models", "verify")
        assert partly.returncode == 0
        assert "✓ vit_b_lm: whole" in partly.stdout
        assert "vit_b_lm_decoder: missing" in partly.stdout
        assert "tmpab12cd34: of a fetch that is going on or was killed" in partly.stdout
        assert slidesam("models", "verify", "vit_b_lm").returncode == 1
        (fetched / "vit_b_lm").write_bytes(ENCODER[:-1])
        wrong = slidesam("models", "verify")
        assert wrong.returncode == 1
        assert "✗ vit_b_lm: not the file of micro-sam's registry" in wrong.stdout
        assert slidesam("models", "fetch", "vit_b_lm").returncode == 0
        assert slidesam("models", "verify", "vit_b_lm").returncode == 0

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("404", "127.0.0.1:"),
            ("cut", "no connection to 127.0.0.1:"),
            ("other bytes", "is not the file of micro-sam's registry"),
            ("no server", "run this where there is internet (a login node"),
            ("no folder", "name another folder with --cache"),
            ("no model", "no model 'cyto3'"),
        ],
    )
    def test_that_fails_says_what_to_do_and_leaves_nothing(
        self, fault: str, words: str, slidesam, cache: Path, mirror: Mirror
    ) -> None:
        mirror.fault = fault if fault in ("404", "cut") else None
        folder = cache
        if fault == "other bytes":
            mirror.contents["vit_b_lm"] = ENCODER[:-1] + b"!"
        elif fault == "no server":
            mirror.stop()
        elif fault == "no folder":
            cache.write_text("a file")
        result = slidesam("models", "fetch", "cyto3" if fault == "no model" else "vit_b_lm", "--cache", folder)
        assert result.returncode == 1
        (error,) = errors_of(result)
        assert words in error
        assert result.stderr.splitlines() == [error]
        assert names_in(cache / "models") == []

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_that_is_killed_leaves_nothing_that_looks_whole(
        self, how: signal.Signals, slidesam, cache: Path, mirror: Mirror, tmp_path: Path
    ) -> None:
        mirror.fault = "slow"
        known = {OVERRIDES: str(mirror.file), "NO_PROXY": "127.0.0.1"}
        fetch = called(tmp_path / "home", "models", "fetch", "vit_b_lm", **known)
        process = subprocess.Popen(**fetch, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        folder = cache / "models"
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in folder.glob("tmp*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "Traceback" not in out + err
        assert not (folder / "vit_b_lm").exists()
        assert len(names_in(folder)) == (1 if how is signal.SIGKILL else 0)
        assert slidesam("models", "verify", "vit_b_lm").returncode == 1
        mirror.fault = None
        mirror.let_go.set()
        assert slidesam("models", "fetch", "vit_b_lm").returncode == 0
        assert slidesam("models", "verify", "vit_b_lm").returncode == 0


class Trap:
    """Unpickled, it makes a file: what whoever wrote the weights could do with anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "trap"])
def test_a_run_without_the_right_weights_ends_before_any_block(
    weights: str, slidesam, cache: Path, tmp_path: Path
) -> None:
    slide, output, marker = write_numbered_slide(tmp_path / "slide.tif"), tmp_path / "out", tmp_path / "executed"
    if weights == "trap":
        (cache / "models").mkdir(parents=True)
        (cache / "models" / "vit_b_lm").write_bytes(pickle.dumps(Trap(marker)))
        (cache / "models" / "vit_b_lm_decoder").write_bytes(DECODER)
    result = slidesam("segment", slide, "--output", output)
    assert result.returncode == 1
    (error,) = errors_of(result)
    assert "`slidesam models fetch vit_b_lm" in error
    assert ("are not on this machine" if weights == "none" else "isn't loaded") in error
    assert not marker.exists()
    # Only the note for `slidesam status`.
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["state.json"]


# Python runs this first in each process whose PYTHONPATH holds it: connections beyond this machine are refused, and noted.
NO_NETWORK = """
import os, socket, sys

HERE = {None, "", "localhost", "::1", "::", "0.0.0.0", socket.gethostname()}

def refuse(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in HERE or str(host).startswith("127."):
        return
    with open(os.environ["ATTEMPTS"], "a") as log:
        log.write(f"{event} {host}\\n")
    raise OSError(101, f"no network: {host}")

sys.addaudithook(refuse)
"""
RUN = """
import json, socket, sys
from pathlib import Path

from dask.distributed import Client

from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
from slidesam.flows.slide.segment_slide import segment_slide
from slidesam.flows.prefect_api.server import prefect_api
from slidesam.tasks.settings.parse import make_settings
from tests.support.microsam_small import use_small_networks

if __name__ == "__main__":
    try:
        socket.create_connection(("198.51.100.7", 80), timeout=5)
    except OSError as error:
        print(error)
    slide, output = map(Path, sys.argv[1:])
    where = LocalProfile(workers=1, threads=1)
    overrides = {"segmenter.model": "vit_b_lm", "segmenter.device": "cpu", "blocks.block_shape": 256, "blocks.halo": 32}
    with prefect_api(), open_cluster(where) as cluster:
        with Client(cluster.address, set_as_default=False) as client:
            client.run(use_small_networks)
        facts = segment_slide(slide, output, make_settings(overrides=overrides), where)
    print(json.dumps({"objects": facts["objects"], "identity": facts["segmenter"]["identity"]}))
"""


class TestLoading:
    """With the real micro-sam."""

    pytestmark = microsam

    def test_the_registry_is_micro_sams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from micro_sam.util import models as theirs

        monkeypatch.delenv(OVERRIDES, raising=False)
        store = theirs()
        assert registry() == {name: Registered(known, store.urls[name]) for name, known in store.registry.items()}
        monkeypatch.setenv("MICROSAM_CACHEDIR", "/shared/cache")
        assert Path(theirs().path) == cache_folder()

    @pytest.mark.parametrize("is_registered", [False, True])
    def test_weights_that_would_run_code_are_not_loaded(
        self, is_registered: bool, fetched: Path, mirror: Mirror, tmp_path: Path
    ) -> None:
        trap = pickle.dumps(Trap(tmp_path / "executed"))
        planned = segmenter_identity(MicroSam(), is_rgb=False)
        (fetched / "vit_b_lm").write_bytes(trap)
        if is_registered:
            # To show that the trap is one, and that it is the hash that keeps it from being loaded.
            mirror.register(CONTENTS | {"vit_b_lm": trap})
            planned = segmenter_identity(MicroSam(), is_rgb=False)
        message = "can't be loaded as weights" if is_registered else "so it isn't loaded"
        with pytest.raises(SegmenterError, match=message):
            load_segmenter(MicroSam(device="cpu").model_dump_json(), False, planned)
        assert (tmp_path / "executed").exists() == is_registered

    def test_a_prepared_cache_is_all_that_a_run_needs(
        self, slidesam, microsam_checkpoint: Path, cache: Path, mirror: Mirror, tmp_path: Path
    ) -> None:
        import torch

        state = torch.load(microsam_checkpoint, mmap=True, weights_only=True)
        for name, part in (("vit_b_lm", "model_state"), ("vit_b_lm_decoder", "decoder_state")):
            torch.save(dict(state[part]), tmp_path / name)
            mirror.contents[name] = (tmp_path / name).read_bytes()
            (tmp_path / name).unlink()
        mirror.register(mirror.contents)
        assert slidesam("models", "fetch", "vit_b_lm").returncode == 0
        mirror.stop()

        tifffile.imwrite(tmp_path / "ihc.tif", immunohistochemistry()[:256, :256], photometric="rgb")
        (tmp_path / "bare").mkdir()
        (tmp_path / "bare" / "sitecustomize.py").write_text(NO_NETWORK)
        (tmp_path / "run.py").write_text(RUN)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", tmp_path / "run.py", tmp_path / "ihc.tif", tmp_path / "out"],
            env=kept
            | {
                "PYTHONPATH": f"{tmp_path / 'bare'}{os.pathsep}{ROOT}",
                "PREFECT_HOME": str(tmp_path / "home"),
                "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "ATTEMPTS": str(tmp_path / "attempts.txt"),
                OVERRIDES: str(mirror.file),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert "no network: 198.51.100.7" in lines[0]
        facts = json.loads(lines[-1])
        assert facts["objects"] >= 10
        digests = (hashlib.sha256(mirror.contents[name]).digest() for name in CONTENTS)
        assert f"vit_b_lm sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}" in facts["identity"]
        # Nobody even tried, but for the connection that shows that none can be made.
        assert (tmp_path / "attempts.txt").read_text() == "socket.getaddrinfo 198.51.100.7\n"
