"""What is installed: packages, the files of wheel and sdist, one version, and a wheel that works by itself."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import slidesam
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"slidesam": "api", "slidesam.flows": "flows", "slidesam.tasks": "tasks"}
DATA = {"py.typed", "flows/py.typed", "tasks/py.typed", "tasks/trial/tile.tif"}
DATA_FOLDERS = ("flows/cluster/profiles", "tasks/segmenters/microsam/nuclei_small", "tasks/view/static")


def source_files() -> set[str]:
    """Modules and data of the three folders, as the wheel has them below slidesam/."""
    files = set()
    for package, folder in FOLDERS.items():
        inside = "/".join(package.split(".")[1:])
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(str(Path(inside) / path.relative_to(ROOT / folder)))
    return files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist of this checkout, and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("build")
    source, dist = folder / "source", folder / "dist"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*FOLDERS.values(), "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    dist.mkdir()
    run_backend(source, f"build_sdist({str(dist)!r})")
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    run_backend(next((folder / "unpacked").iterdir()), f"build_wheel({str(dist)!r})")
    return dist


def run_backend(folder: Path, call: str) -> None:
    code = f"from setuptools import build_meta; build_meta.{call}"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


def test_the_packages_that_are_listed_are_the_folders() -> None:
    modules = {path for path in source_files() if path.endswith("__init__.py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(("slidesam", *Path(path).parent.parts)) for path in modules
    )


def test_every_folder_with_modules_is_a_package() -> None:
    files = source_files()
    folders = {str(Path(path).parent) for path in files if path.endswith(".py")}
    assert {folder for folder in folders if str(Path(folder) / "__init__.py") not in files} == set()


@pytest.mark.slow
def test_the_wheel_has_modules_profiles_and_type_marks_and_nothing_else(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    content = {name.removeprefix("slidesam/") for name in names if ".dist-info/" not in name}
    assert content == source_files()
    assert {name for name in content if not name.endswith(".py")} == DATA | {
        f"{folder}/{path.name}" for folder in DATA_FOLDERS for path in (ROOT / folder).iterdir()
    }
    assert next(built.glob("*.whl")).name == f"slidesam-{slidesam.__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_the_sdist_has_what_the_wheel_needs_and_no_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "api/__init__.py"} <= names
    assert {name.partition("/")[0] for name in names} <= {
        "", "api", "flows", "tasks", "tests", "slidesam.egg-info", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in",
        "PKG-INFO", "setup.cfg",
    }  # fmt: skip
    assert {name for name in names if name.startswith("tests/")} == set()


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(inside)
    # Dependencies come from the tests' own environment; a folder that is added so has its .pth files, and with them the
    # editable install, left unread.
    (inside / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "try.py").write_text(
        "import pathlib, slidesam\n"
        "from slidesam.tasks.folder.demo import demo_settings, make_demo_slide\n"
        "make_demo_slide(pathlib.Path('demo.ome.tif'), 1100)\n"
        "result = slidesam.segment('demo.ome.tif', 'out', demo_settings('watershed'), progress=False)\n"
        "print(slidesam.__file__, slidesam.__version__, len(result.objects), result.labels[500, :].any())\n"
    )
    python = [environment / "bin" / "python", "-W", "error::UserWarning:slidesam", "try.py"]
    run = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    file, version, objects, has_labels = run.stdout.split()
    assert file == str(inside / "slidesam" / "__init__.py")
    assert (version, int(objects) > 500, has_labels) == (slidesam.__version__, True, "True")


def test_there_is_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("slidesam") == citation["version"] == slidesam.__version__ == version


def test_the_citation_says_what_the_format_needs() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
