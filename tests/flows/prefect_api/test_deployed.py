"""Which runs are worth another try, and what is the file's fault."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun

from slidesam.flows.cluster.find_profile import make_profile
from slidesam.flows.prefect_api.deployed import reason_to_skip, refuse_foreign, refuse_relative
from slidesam.tasks.errors import SettingsError, SlideAwayError, SlideError
from slidesam.tasks.run.status import describe_file, write_state
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.source import errors_as_slide_errors
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
ID, OTHER = "6f5e4ccb-3fe1-405b-9195-7c70f5232d2f", "caf9b87d-36f7-4cea-91e4-0dcade239374"


@pytest.fixture
def run(tmp_path: Path) -> FlowRun:
    (tmp_path / "a.svs").write_bytes(b"no slide")
    parameters = {
        "slide": str(tmp_path / "a.svs"),
        "output": str(tmp_path),
        "settings": {"output": {"label": "nuclei"}},
    }
    return FlowRun.model_validate({"id": ID, "flow_id": OTHER, "parameters": parameters})


def noted(folder: Path, status: str, **facts: object) -> None:
    write_state(folder, "a", "nuclei", status, **facts)


def test_a_failed_run_is_worth_another_try(run: FlowRun, tmp_path: Path) -> None:
    assert reason_to_skip(run) is None
    noted(tmp_path, "failed", flow_run_id=ID, error="blocks failed")
    assert reason_to_skip(run) is None


def test_a_file_at_fault_is_worth_it_once_it_has_changed(run: FlowRun, tmp_path: Path) -> None:
    noted(tmp_path, "failed", flow_run_id=ID, error="cut short", file=describe_file(tmp_path / "a.svs"))
    assert reason_to_skip(run) == "its file hasn't changed: cut short"
    (tmp_path / "a.svs").write_bytes(b"another")
    assert reason_to_skip(run) is None


@pytest.mark.parametrize("state", [{"status": "failed", "flow_run_id": OTHER}, {"status": "finished"}])
def test_an_older_run_is_never_put_over_a_later_one(run: FlowRun, tmp_path: Path, state: dict) -> None:
    noted(tmp_path, **state)
    assert reason_to_skip(run) == "a later run took this slide over"


def test_settings_of_another_version_cost_no_other_slide(run: FlowRun) -> None:
    run.parameters["settings"] = {"blocks": {"no_such": 1}}
    assert reason_to_skip(run) is None


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.EIO, "input/output error"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (MemoryError(), True),
        (ImportError("no codec"), True),
        (ValueError("corrupt"), False),
        (OSError("cannot identify"), False),
    ],
)
def test_only_what_is_the_files_fault_is_held_against_it(error: Exception, passing: bool) -> None:
    with pytest.raises(SlideError) as caught, errors_as_slide_errors("a.svs", "can't be read", "copy it again"):
        raise error
    assert isinstance(caught.value, SlideAwayError) is passing


def test_relative_paths_are_refused_in_runs_of_deployments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(overrides={"blocks.tissue": "mask.png"})
    refuse_relative(settings, output="results")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", ID)
    with pytest.raises(SettingsError, match=r"output: give the whole path, beginning with /, not 'results'"):
        refuse_relative(make_settings(), output="results")
    with pytest.raises(SettingsError, match=r"blocks\.tissue"):
        refuse_relative(settings, output="/results")
    with pytest.raises(SettingsError, match="slide"):
        refuse_relative(make_settings(), output="/results", slide=Path("~/a.svs"))
    refuse_relative(make_settings(), output="/results", slide=Path("/scans/a.svs"))


def test_a_form_names_no_profile_that_isnt_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = make_profile({"kind": "slurm", "cpu": {"prologue": ["touch /tmp/x"]}})
    # Whoever calls the flow in Python runs any code anyway.
    refuse_foreign(hostile)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", ID)
    refuse_foreign(make_profile({"kind": "local", "workers": 2}))
    with pytest.raises(SettingsError, match=r"the run's parameters give a cluster profile .* could run any command"):
        refuse_foreign(hostile)
