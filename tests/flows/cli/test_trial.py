"""`slidesam try`: its files, what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from slidesam.flows.cli.trial import _read_grid
from slidesam.tasks.errors import SettingsError
from tests.support.slides import write_numbered_slide

QUICK = ["--segmenter", "watershed", "--side", "64", "--vary", "segmenter.diameter=6,9"]


def test_a_page_and_a_table_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slide = write_numbered_slide(tmp_path / "s.tif")
    result = CliRunner().invoke(app, ["try", str(slide), *QUICK, "--set", "blocks.halo=32", "--region", "0,0"])
    assert result.exit_code == 0, result.output
    assert "2 choices on 1 regions" in result.stdout
    page = (tmp_path / "s.try.html").read_text()
    assert "--segmenter watershed --set blocks.halo=32 --set segmenter.diameter=6<" in page
    assert len((tmp_path / "s.try.csv").read_text().splitlines()) == 3
    # Nothing else: a trial leaves no store and no work folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tif", "s.try.csv", "s.try.html"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--region", "5"], "--region 5: write row and column of its upper left corner, e.g. 4096,1024"),
        (["--vary", "segmenter.mode"], "--vary segmenter.mode: write the setting's name and values"),
        (["--page", "missing/a.html"], "missing is not a folder: give a --page in one that exists"),
        (["--vary", "segmenter.model=a,b"], "unknown setting segmenter.model: it belongs to segmenter.kind"),
    ],
)
def test_what_cannot_be_tried_is_named(option: list[str], message: str, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    result = CliRunner().invoke(app, ["try", str(slide), "--segmenter", "watershed", *option])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_values_are_read_as_yaml() -> None:
    grid = _read_grid(["a.b=0.3, 0.5", "c.d=[[512,512]]", "e.f=null,auto", "g.h=[1,2]"])
    assert grid == {"a.b": [0.3, 0.5], "c.d": [[512, 512]], "e.f": [None, "auto"], "g.h": [1, 2]}
    with pytest.raises(SettingsError, match="is no YAML value"):
        _read_grid(["a.b=[1"])
