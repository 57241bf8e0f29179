"""A run needs no network, and loads no weights that could be anything."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile
from skimage.data import immunohistochemistry

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.segmenters.microsam.registry import (
    CLASS_DECODERS,
    OVERRIDES,
    Registered,
    find_cache_folder,
    read_registry,
)
from slidesam.tasks.settings.methods import MicroSam
from tests.flows.cli.test_app import errors_of
from tests.support import ROOT
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.slides import write_numbered_slide
from tests.support.weights_mirror import CONTENTS, DECODER, NEEDS_MICROSAM, Mirror

pytestmark = NEEDS_MICROSAM


class Trap:
    """Unpickled, it makes a file: what whoever wrote the weights could do with anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "trap"])
def test_a_run_without_the_right_weights_ends_before_any_block(
    weights: str, slidesam, cache: Path, prefect_server: str, tmp_path: Path
) -> None:
    slide, output, marker = write_numbered_slide(tmp_path / "slide.tif"), tmp_path / "out", tmp_path / "executed"
    if weights == "trap":
        (cache / "models").mkdir(parents=True)
        (cache / "models" / "vit_b_lm").write_bytes(pickle.dumps(Trap(marker)))
        (cache / "models" / "vit_b_lm_decoder").write_bytes(DECODER)
    result = slidesam("segment", slide, "--output", output, PREFECT_API_URL=prefect_server)
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

from slidesam.flows.cluster.cluster import open_cluster
from slidesam.flows.cluster.profile import LocalProfile
from slidesam.flows.slide.segment_slide import segment_slide_in
from slidesam.flows.slide.session import Session
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
        with cluster.workers().connect() as client:
            client.run(use_small_networks)
        facts = segment_slide_in(Session(cluster=cluster), slide, output, make_settings(overrides=overrides))
    print(json.dumps({"objects": facts.objects, "identity": facts.segmenter.identity}))
"""


class TestLoading:
    """With the real micro-sam."""

    pytestmark = MICROSAM_MARKS

    def test_the_registry_is_micro_sams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from micro_sam.util import models as theirs

        monkeypatch.delenv(OVERRIDES, raising=False)
        store = theirs()
        ours = read_registry()
        # The decoder of classes is PathoSAM's, of which micro-sam knows nothing.
        assert ours.pop(CLASS_DECODERS["vit_b_histopathology"]).url.startswith("https://")
        assert ours == {name: Registered(known, store.urls[name]) for name, known in store.registry.items()}
        monkeypatch.setenv("MICROSAM_CACHEDIR", "/shared/cache")
        assert Path(theirs().path) == find_cache_folder()

    @pytest.mark.parametrize("is_registered", [False, True])
    def test_weights_that_would_run_code_are_not_loaded(
        self, is_registered: bool, fetched: Path, mirror: Mirror, tmp_path: Path
    ) -> None:
        trap = pickle.dumps(Trap(tmp_path / "executed"))
        planned = segmenter_identity(MicroSam(), is_rgb=False)
        (fetched / "vit_b_lm").write_bytes(trap)
        if is_registered:
            # Its hash is right: what keeps its code from running is that only weights are loaded.
            mirror.register(CONTENTS | {"vit_b_lm": trap})
            planned = segmenter_identity(MicroSam(), is_rgb=False)
        message = "can't be loaded as weights" if is_registered else "so it isn't loaded"
        with pytest.raises(SegmenterError, match=message):
            load_segmenter(MicroSam(device="cpu").model_dump_json(), False, planned)
        assert not (tmp_path / "executed").exists()
        # The trap is one.
        pickle.loads(trap)
        assert (tmp_path / "executed").exists()

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
