"""The layout of the code: what newcomers rely on when they look for something."""

from __future__ import annotations

from benchmarks import structure
from tests.support import ROOT

CODE = structure.python_files(ROOT, *structure.CODE)
# Entry points of three programs.
ENTRY_POINTS = {"main", "dask_setup"}


def test_a_public_function_or_class_has_a_name_of_its_own() -> None:
    places = structure.public_names(CODE)
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and name not in ENTRY_POINTS} == {}


def test_files_and_functions_are_short() -> None:
    assert [path for path in CODE if structure.n_lines([path]) > 360] == []
    assert [function for function in structure.functions(CODE, ROOT) if function.lines > 60] == []


def test_state_is_passed_as_arguments() -> None:
    assert structure.count_text(CODE, "ContextVar") == 0


def test_tests_lie_in_the_folders_of_the_code() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in structure.python_files(ROOT, "tests")}
    own = {"support", "infra", "benchmarks", "."}
    assert [folder for folder in folders if str(folder) not in own and not (ROOT / folder).is_dir()] == []
