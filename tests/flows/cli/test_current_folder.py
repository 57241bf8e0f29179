"""What the current folder must not do: run code as the person who starts slidesam in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.flows.cli.current_folder import distrust_current_folder
from slidesam.tasks.errors import SettingsError

SETTINGS = {
    ".env": "HOME=/x\nexport PREFECT_LOGGING_CONFIG_PATH=evil.yml\n", "prefect.toml": "[api]\nurl = 'http://198.51.100.1/api'\n",
    "pyproject.toml": "[tool.prefect.logging]\nconfig_path = 'evil.yml'\n",
}  # fmt: skip
HARMLESS = {".env": "HOME=/x\n", "prefect.toml": "", "pyproject.toml": "[project]\nname = 'prefect-like'\n"}


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the function sets would stay for all later tests of this process."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_prefect_are_refused_unless_allowed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(HARMLESS[name])
    distrust_current_folder()
    path.write_text(SETTINGS[name])
    with pytest.raises(SettingsError, match=f"{name} has settings of Prefect.* start slidesam in another folder"):
        distrust_current_folder()
    monkeypatch.setenv("SLIDESAM_ALLOW", f"tests.*,{path}")
    distrust_current_folder()


DISGUISED = {
    "line end": (".env", b"A=1\rPREFECT_API_URL=http://198.51.100.1/api\n"),
    "byte order mark": (".env", b"\xef\xbb\xbfPREFECT_API_URL=http://198.51.100.1/api\n"),
    "odd space": (".env", b"\xc2\xa0PREFECT_API_URL=http://198.51.100.1/api\n"),
    "quotes": (".env", b"A='\n'\n'prefect_api_url'=x\n"),
    "escape": ("pyproject.toml", rb'[tool."pre\u0066ect".api]' + b"\nurl = 'http://198.51.100.1/api'\n"),
}


@pytest.mark.parametrize("way", DISGUISED)
def test_disguised_settings_are_seen(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = DISGUISED[way]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match="has settings of Prefect"):
        distrust_current_folder()


def test_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / ".env")
    with pytest.raises(SettingsError, match="has settings of Prefect"):
        distrust_current_folder()


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf[project]\nname = 'x'\n", b"[project", b"name = '\xff'\n"])
def test_a_file_at_which_prefect_would_stop_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"pyproject.toml can't be read, and Prefect would stop at it.*correct the file"
    ):
        distrust_current_folder()


def test_processes_take_no_modules_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "dask.py").write_text("raise SystemExit('imported')")
    code = (
        "import subprocess, sys; from slidesam.flows.cli import app; app.app = lambda: None; app.main(); "
        "sys.exit(subprocess.run([sys.executable, '-m', 'dask', '--version']).returncode)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_answers_wherever_it_is_asked_and_imports_no_prefect(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(SETTINGS[".env"])
    code = (
        "import atexit, sys; from slidesam.flows.cli import app; sys.argv = ['slidesam', 'segment', '--help']; "
        "atexit.register(lambda: print('prefect' in sys.modules)); app.main()"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr
    assert "--output" in done.stdout
