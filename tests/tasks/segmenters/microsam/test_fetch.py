"""`slidesam models`: weights are fetched whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from slidesam.tasks.segmenters.microsam.registry import MODELS, OVERRIDES
from tests.flows.cli.test_app import called, errors_of
from tests.support.weights_mirror import CONTENTS, ENCODER, NEEDS_MICROSAM, Mirror

pytestmark = NEEDS_MICROSAM


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


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
        assert any(line.startswith("nuclei-small") and line.endswith("31 MB") for line in listed)
        assert shown.keys() == MODELS.keys()
        assert shown["vit_b_lm"].split()[1:3] == ["B", "yes"]
        assert "light microscopy" in shown["vit_b_lm"]
        assert shown["vit_b_lm"].split()[-3:] == ["yes", "4", "MB"]
        assert shown["vit_t"].split()[-4:] == ["no", "≈", "40", "MB"]
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
        assert "tmpab12cd34: of a fetch that runs now or was killed" in partly.stdout
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
