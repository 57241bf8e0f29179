"""`slidesam verify`: the table, what is named, the exit code, and repairing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16}


def verify(*arguments: object) -> tuple[int, str]:
    """Return the exit code, and what is printed, with single spaces: terminals differ in width."""
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return result.exit_code, " ".join(result.stdout.split())


def test_a_damaged_result_is_named_taken_back_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slide, out = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert verify("empty") == (0, f"{tmp_path / 'empty'}: no finished results of slidesam here")
    segment_serially(slide, out, SETTINGS)
    code, text = verify("out")
    assert code == 0
    assert text.startswith("slide result files MiB state s image ")
    assert text.count("sound") == 2

    overlay = out / "s.cells.overlay.png"
    overlay.write_bytes(overlay.read_bytes()[:-1] + b"?")
    assert verify("out", "--sample")[0] in (0, 1)
    code, text = verify("out")
    assert code == 1
    assert f"✗ s (cells): {overlay} differs from its checksum" in text
    assert "--repair" in text
    assert overlay.exists()

    code, text = verify("out", "--repair")
    assert code == 1
    assert "taken back: run `slidesam segment`" in text
    assert not overlay.exists()
    segment_serially(slide, out, SETTINGS)
    assert verify("out")[0] == 0
