"""The command line, in this process, and what it prints."""

from __future__ import annotations

from typer.testing import CliRunner

from slidesam.flows.cli.app import app

PIECES = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.support.faults:bright_pieces",
    "blocks.block_shape": 64,
    "blocks.halo": 16,
}
"""Settings of a small slide in blocks of 64 px."""


def run_and_read(*arguments: object) -> str:
    """Return what a command prints, on one line and with single spaces: terminals differ in width."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exception is None
    assert result.exit_code == 0
    return " ".join(result.stdout.split())
