"""Runs from the command line: what `slidesam retry` takes from an output folder, and what it doesn't."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.flows.cli import command
from slidesam.flows.cli.options import load_settings
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.run.status import write_state
from slidesam.tasks.settings.parse import make_settings
from tests.support.slides import write_numbered_slide


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server and no cluster may be started."""
    monkeypatch.setattr(command, "prefect_api", lambda host: pytest.fail(f"a server was started for {host}"))
    monkeypatch.setattr(command, "open_cluster", lambda profile, logs: pytest.fail(f"{profile} was opened"))
    monkeypatch.delenv("SLIDESAM_ALLOW")


SAFE = {"segmenter": {"kind": "watershed"}}
POPEN = {"segmenter": {"kind": "function", "target": "subprocess:Popen", "options": {"args": ["touch", "/tmp/made"]}}}


@pytest.mark.parametrize(
    ("settings", "cluster", "words"),
    [
        (POPEN, {"kind": "local"}, "subprocess:Popen isn't allowed"),
        (
            SAFE,
            {"kind": "slurm", "cpu": {"prologue": ["touch /tmp/made"]}},
            "a cluster profile (slurm) that is none of",
        ),
        (SAFE, {"kind": "slurm", "python": "/tmp/evil"}, "--cluster NAME"),
        (SAFE, {"kind": "attach", "address": "tcp://198.51.100.1:1"}, "--scheduler tcp://198.51.100.1:1"),
        (
            {"segmenter": {"checkpoint": "/tmp/evil.pt", "model": "vit_b", "trust": True}},
            {"kind": "local"},
            "--allow /tmp/evil",
        ),
    ],
    ids=["target", "prologue", "python", "address", "checkpoint"],
)
def test_retry_runs_nothing_that_the_folder_asks_for(
    settings: dict, cluster: dict, words: str, tmp_path: Path, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    slide, output = write_numbered_slide(tmp_path / "slide.tif"), tmp_path / "out"
    output.mkdir()
    facts = {"slide_path": str(slide), "settings": make_settings(settings).model_dump(mode="json"), "cluster": cluster}
    write_state(output, "slide", "objects", "failed", error="of another kind", **facts)
    before = sorted((path, path.read_bytes()) for path in output.rglob("*") if path.is_file())
    assert command.retry_slides(output, None) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert words in said
    assert sorted((path, path.read_bytes()) for path in output.rglob("*") if path.is_file()) == before


def test_a_sites_settings_come_first_and_what_a_person_gives_goes_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site.yaml").write_text(
        "blocks: {halo: 32, tissue: 'off'}\nsegmenter: {kind: watershed, diameter: 9}\n"
    )
    (tmp_path / "own.yaml").write_text("blocks: {halo: 16}\n")
    (tmp_path / "other.yaml").write_text("segmenter: {kind: cellpose}\n")
    monkeypatch.setenv("SLIDESAM_SETTINGS", str(tmp_path / "site.yaml"))
    settings, _ = load_settings(None, None, None)
    assert (settings.blocks.halo, settings.blocks.tissue, settings.segmenter.diameter) == (32, "off", 9)
    settings, _ = load_settings(tmp_path / "own.yaml", None, ["segmenter.diameter=7"])
    assert (settings.blocks.halo, settings.blocks.tissue, settings.segmenter.diameter) == (16, "off", 7)
    assert load_settings(tmp_path / "other.yaml", None, None)[0].segmenter.kind == "cellpose"
    assert load_settings(None, "micro-sam", None)[0].segmenter.kind == "micro-sam"
    monkeypatch.setenv("SLIDESAM_SETTINGS", str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match=r"none.yaml can't be read"):
        load_settings(None, None, None)
