"""Many slides in one process, and `slidesam retry` for those that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.flows.cli.test_app import slidesam
from tests.flows.slide.test_segment_slide import faulty
from tests.support import ROOT
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide

pytestmark = [*(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)]


def test_a_run_that_crashes_has_ended_only_if_it_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Completed, Crashed, Running

    from slidesam.flows.many import cohort

    now, crashed = [0.0], {}
    monkeypatch.setattr(cohort.time, "monotonic", lambda: now[0])
    run = FlowRun.model_validate(
        {"id": "6f5e4ccb-3fe1-405b-9195-7c70f5232d2f", "flow_id": "6f5e4ccb-3fe1-405b-9195-7c70f5232d2f"}
    )
    run.state = Crashed()
    assert not cohort._has_ended(run, crashed)
    now[0] = 60.0
    run.state = Running()
    assert not cohort._has_ended(run, crashed)
    run.state = Crashed()
    now[0] = 120.0
    assert not cohort._has_ended(run, crashed)
    now[0] = 120.0 + cohort._CRASHED_FOR + 1
    assert cohort._has_ended(run, crashed)
    run.state = Completed()
    assert cohort._has_ended(run, {})


def test_only_a_cohort_that_failed_is_tried_again_not_one_whose_process_died() -> None:
    from prefect.states import AwaitingRetry, Crashed, Failed, Running

    from slidesam.flows.many.cohort import AUTOMATION_MESSAGE, _is_retry

    assert not _is_retry([Running()])
    assert _is_retry([Running(), Failed(), AwaitingRetry(), Running()])
    by_itself = next(
        automation["actions"][0]["message"]
        for automation in yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
        if "crashed runs" in automation["name"]
    )
    assert by_itself == AUTOMATION_MESSAGE
    before = [Running(), Failed(), AwaitingRetry(), Running(), Crashed()]
    assert not _is_retry([*before, AwaitingRetry(message=by_itself), Running()])
    assert _is_retry([*before, AwaitingRetry(message="Retry from the UI"), Running()])


@pytest.mark.slow
def test_failed_slides_of_a_command_are_retried_with_their_settings_and_only_what_is_missing(
    prefect_server: str, tmp_path: Path
) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    logs = {name: tmp_path / f"{name}.log" for name in ("bad", "good", "stubborn")}
    for name in logs:
        write_numbered_slide(scans / f"{name}.tif")
    whole = (scans / "bad.tif").read_bytes()
    (scans / "bad.tif").write_bytes(whole[: len(whole) // 2])
    stubborn = {"fail_on": 5, "times": 1}
    (scans / "list.csv").write_text(
        "path;segmenter.options;run.retries\n"
        + "".join(
            f"{name}.tif;{json.dumps({'log': str(log)} | (stubborn if name == 'stubborn' else {}))};0\n".replace(
                '"', ""
            )
            for name, log in logs.items()
        )
    )
    common = {"home": tmp_path / "home", "PREFECT_API_URL": prefect_server}
    options = [
        f"--set={name}={value}" for name, value in faulty(tmp_path / "none").items() if name != "segmenter.options"
    ]
    first = slidesam("segment", scans / "list.csv", "-o", output, "--workers", 1, *options, **common)
    assert first.returncode == 1
    assert "1 of 3 slides finished" in first.stdout
    assert "bad.tif: truncated" in first.stderr
    assert "stubborn: 1 of 9 blocks failed" in first.stderr
    assert _cohort_table(prefect_server).count("**Failed**") == 2
    sheet = (output / "report.html").read_text()
    assert sheet.count("<article") == 1
    assert "bad.tif: truncated" in sheet

    second = slidesam("retry", output, **common)
    assert second.returncode == 1
    assert "bad: not tried again, since its file hasn't changed" in second.stdout
    assert "stubborn: 9 cells" in second.stdout
    assert logs["stubborn"].read_text().count("done") == 9

    (scans / "bad.tif").write_bytes(whole)
    third = slidesam("retry", output, **common)
    assert third.returncode == 0, third.stderr
    assert "bad: 9 cells" in third.stdout
    assert "stubborn" not in third.stdout
    assert "no slide failed" in slidesam("retry", output, **common).stdout
    assert {name: log.read_text().count("done") for name, log in logs.items()} == dict.fromkeys(logs, 9)


def _cohort_table(server: str) -> str:
    """The newest table of a cohort on the server."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    these = ArtifactFilter(key=ArtifactFilterKey(any_=["slidesam-cohort"]))
    with get_client(sync_client=True) as client:
        return str(client.read_artifacts(artifact_filter=these, sort=ArtifactSort.CREATED_DESC, limit=1)[0].data)
