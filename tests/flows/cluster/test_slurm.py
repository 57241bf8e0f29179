"""On a real Slurm: equal results, jobs for as much work as there is, and every way in which workers and jobs end."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slidesam.tasks.errors import BlockFailures, ClusterError
from slidesam.tasks.settings.parse import make_settings
from tests.flows.cli.test_app import called
from tests.flows.slide.test_segment_slide import CMU1_SETTINGS, NAME, faulty, labels_of, task_runs
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import DEV_SLURM, cancel_all, options, profile, queue, until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, *(pytest.mark.filterwarnings(each) for each in THIRD_PARTY_WARNINGS)]


def run_on(where, slide: Path, output: Path, overrides: dict) -> dict:
    from slidesam.flows.slide.segment_slide import segment_slide

    return segment_slide(slide, output, make_settings(overrides=overrides), where)


def counts(log: Path) -> Counter[str]:
    """How often each block was done."""
    return (
        Counter(line for line in log.read_text().splitlines() if line.endswith("done")) if log.exists() else Counter()
    )


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


class meanwhile:  # noqa: N801
    """Does something in a thread while a run is at work; its error is the test's."""

    def __init__(self, deed) -> None:
        self.deed, self.error = deed, None

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.deed()
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def __exit__(self, *_: object) -> None:
        self.thread.join(240)
        if self.error is not None:
            raise self.error


def test_a_real_slide_in_four_jobs_gives_the_bytes_of_a_local_run(slurm, cmu1: Path, tmp_path: Path) -> None:
    seen = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(tuple(job) for job in queue())
            time.sleep(0.3)

    thread = threading.Thread(target=watch)
    thread.start()
    output = tmp_path / "50 % of it"
    run_on(profile("slurm-cpu", cpu__maximum_jobs=4), cmu1, output, CMU1_SETTINGS)
    stop.set()
    thread.join()
    here = segment_serially(cmu1, tmp_path / "here", CMU1_SETTINGS)
    np.testing.assert_array_equal(labels_of(output, NAME), here)
    # More than four where the machine is slow: a job that has nothing to do is given back, and asked for again later.
    assert len(list((output / ".slidesam/.jobs").glob("*.log"))) >= 4
    running = {job[0]: job[3] for job in seen if job[2] == "RUNNING"}
    assert len(running) >= 4
    assert set(running.values()) <= {"node1", "node2"}
    assert until(lambda: queue() == [], 90)


def test_gpu_jobs_see_one_gpu_each_the_third_waits_and_they_are_given_back_before_stitching(
    whole_slurm, tmp_path: Path, monkeypatch
) -> None:
    from slidesam.flows.slide import segment_slide as module

    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "gpus.tif", 4, 4)
    settings = faulty(log) | {
        "segmenter.target": "tests.support.faults:devices_seen", "segmenter.options": {"log": str(log), "seconds": 1.0}
    }  # fmt: skip
    at_once: list[list[list[str]]] = []
    at_stitching: list[str] = []

    def watch() -> None:
        until(lambda: len([job for job in queue() if job[1].endswith("-gpu")]) == 3)
        until(lambda: len(lines(log)) >= 4)
        at_once.append(queue())

    plain = module.stitch_stage.with_options

    def noted(**kwargs):
        at_stitching.extend(job[1] for job in queue() if job[2] != "COMPLETING")
        return plain(**kwargs)

    monkeypatch.setattr(module.stitch_stage, "with_options", noted)
    with meanwhile(watch):
        run_on(profile("slurm-gpu", gpu__maximum_jobs=3), slide, tmp_path / "out", settings)
    assert Counter(job[2] for job in at_once[0] if job[1].endswith("-gpu")) == {"RUNNING": 2, "PENDING": 1}
    seen = {tuple(line.split()) for line in lines(log)}
    assert len(lines(log)) == 16
    assert {device for _, _, device in seen} == {"0", "1"}
    # A job is a process is a device.
    assert len(seen) == len({job for job, _, _ in seen}) == len({process for _, process, _ in seen})
    assert not any(name.endswith("-gpu") for name in at_stitching)
    assert until(lambda: queue() == [], 90)


def test_a_killed_worker_and_a_cancelled_job_cost_the_blocks_in_flight_only(slurm, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "kills.tif", 6, 6)
    settings = faulty(log, seconds=0.5) | {"blocks.blocks_per_task": 2}

    def kill() -> None:
        until(lambda: len(lines(log)) >= 10)
        jobs = [job[0] for job in queue() if job[2] == "RUNNING"]
        # The worker process itself, not its nanny, which starts another.
        node = next(job[3] for job in queue() if job[0] == jobs[0])
        _kill_workers(jobs[0], node)
        until(lambda: len(lines(log)) >= 20)
        subprocess.run(
            ["scancel", next(job[0] for job in queue() if job[2] == "RUNNING" and job[0] != jobs[0])], check=True
        )

    with meanwhile(kill):
        facts = run_on(profile("slurm-cpu", cpu__maximum_jobs=3), slide, tmp_path / "out", settings)
    assert facts.objects == 36
    done = counts(log)
    assert len(done) == 36
    # Two workers ended, each with one block, which has a line at most if it was between that and its mark.
    assert sum(done.values()) <= 36 + 2
    expected = segment_serially(slide, tmp_path / "serial", faulty(tmp_path / "other"))
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "kills"), expected)
    assert set(task_runs("kills", 18).values()) == {("Completed", 1)}


def _kill_workers(job: str, node: str) -> None:
    """kill -9 of the process that computes for a job."""
    import psutil

    for process in psutil.process_iter(["cmdline", "environ"]):
        environ, command = process.info["environ"] or {}, " ".join(process.info["cmdline"] or [])
        if environ.get("SLURM_JOB_ID") == job and "multiprocessing.spawn" in command:
            process.kill()


def test_jobs_that_reach_their_walltime_lose_nothing(slurm, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "walltime.tif", 8, 8)
    where = profile(
        "slurm-cpu", cpu__maximum_jobs=2, cpu__walltime="00:01:00", cpu__lifetime=30, cpu__lifetime_stagger=2
    )
    facts = run_on(where, slide, tmp_path / "out", faulty(log, seconds=0.9))
    assert facts.objects == 64
    done = counts(log)
    # Each worker finished its block before it left: no block was done twice.
    assert len(done) == sum(done.values()) == 64
    logs = [path.read_text() for path in (tmp_path / "out/.slidesam/.jobs").glob("*.log")]
    assert len(logs) >= 4
    assert sum("its job ends soon" in log for log in logs) >= 2
    assert not any("TIME LIMIT" in log for log in logs)


def hold(name: str) -> None:
    """Puts a job into the queue that waits for ever."""
    subprocess.run(["sbatch", "--hold", f"--job-name={name}", "--wrap=sleep 60", "--output=/dev/null"], check=True)


def test_orphans_of_both_parts_are_cancelled_by_name(slurm) -> None:
    from slidesam.flows.cluster.slurm import cancel_jobs

    for name in ("slidesam-test-cpu", "slidesam-test-gpu", "slidesam-test"):
        hold(name)
    assert len(cancel_jobs(["slidesam-test-cpu", "slidesam-test-gpu"])) == 2
    assert [job[1] for job in queue()] == ["slidesam-test"]
    cancel_jobs(["slidesam-test"])


def test_a_queue_that_refuses_jobs_is_given_up_with_its_words(slurm, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "refused.tif")
    where = profile("slurm-cpu", cpu__account="nobody", cpu__partition="nowhere")
    with pytest.raises(ClusterError, match=r"the queue refuses jobs: .*invalid partition.*cluster show"):
        run_on(where, slide, tmp_path / "out here", faulty(tmp_path / "log"))


def a_command(folder: Path, name: str, api: str, **changes: object) -> tuple[Path, Path, dict]:
    """The command for a slide of 36 blocks of half a second: its segmenter's log, its output folder, and how to run it."""
    log, slide, output = folder / "log", write_numbered_slide(folder / f"{name}.tif", 6, 6), folder / "out"
    settings = [part for key, value in faulty(log, seconds=0.5).items() for part in ("--set", f"{key}={value}")]
    arguments = ["segment", slide, "-o", output, *settings, "--cluster", "slurm-cpu", *options(**changes)]
    return log, output, called(folder / "home", *arguments, PREFECT_API_URL=api)


def test_a_killed_flow_leaves_jobs_that_end_and_the_same_command_finishes(
    slurm, prefect_server, tmp_path: Path
) -> None:
    log, _, command = a_command(tmp_path, "flow", prefect_server, cpu__maximum_jobs=2)
    flow = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(lines(log)) >= 6 and len(queue()) == 2)
    flow.kill()
    flow.wait()
    # Its workers may have left by themselves before the next run looks; a job that waits doesn't.
    hold(queue()[0][1])
    before = len(lines(log))
    again = subprocess.run(**command, capture_output=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert re.search(r"cancelled (1 job|[23] jobs) that a killed run had left", again.stderr)
    assert before < 36
    done = counts(log)
    assert len(done) == 36
    assert sum(done.values()) <= 36 + 2
    assert until(lambda: queue() == [], 90)
    # Nothing of the killed run is shown as running.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    these = FlowRunFilter(name=FlowRunFilterName(any_=["flow · function", "segment blocks of flow"]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=these)
        tasks = client.read_task_runs(flow_run_filter=these, limit=200)
    assert Counter(run.state_name for run in runs) == {"Completed": 2, "Crashed": 2}
    assert {run.state_name for run in tasks} <= {"Completed", "Crashed", "Cancelled"}


def test_jobs_of_a_killed_flow_end_by_themselves_and_clean_cancels_those_that_wait(
    whole_slurm, prefect_server, tmp_path: Path
) -> None:
    # Of the second job there is no room: it waits.
    changes = {"cpu__maximum_jobs": 5, "cpu__memory": 30, "death_timeout": 20}
    log, output, command = a_command(tmp_path, "orphan", prefect_server, **changes)
    flow = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(lines(log)) >= 6)
    until(lambda: {job[2] for job in queue()} >= {"RUNNING", "PENDING"})
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    running = {job[0] for job in queue() if job[2] == "RUNNING"}
    # death_timeout, and what a block and an orderly end take.
    until(lambda: not running & {job[0] for job in queue()}, 60)
    assert queue()
    cleaned = subprocess.run(
        **called(tmp_path / "home", "clean", output), capture_output=True, timeout=200, check=False
    )
    assert cleaned.returncode == 0, cleaned.stderr
    assert "cancelled" in cleaned.stdout
    assert until(lambda: queue() == [], 90)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_frees_the_queue_at_once(slurm, prefect_server, tmp_path: Path, number: signal.Signals) -> None:
    log, _, command = a_command(tmp_path, "stop", prefect_server, cpu__maximum_jobs=2)
    flow = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: len(lines(log)) >= 4)
    flow.send_signal(number)
    _, said = flow.communicate(timeout=120)
    assert flow.returncode == 130, said
    assert "run the same command again to resume" in said
    assert until(lambda: queue() == [], 90)


def test_a_block_that_always_kills_its_worker_is_named_and_the_others_finish(slurm, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "killer.tif")
    settings = faulty(log, fail_on=5, deed="kill") | {"run.retries": 1}
    with pytest.raises(
        BlockFailures, match=r"1 of 9 blocks failed \(block 4: block 4 ended its worker 2 times"
    ) as caught:
        run_on(profile("slurm-cpu", cpu__maximum_jobs=2), slide, tmp_path / "out", settings)
    assert caught.value.block_ids == (4,)
    assert "its log ends with: " in str(caught.value)
    assert "was killed by signal 9" in str(caught.value)
    assert sorted(counts(log)) == sorted(f"{k} done" for k in range(1, 10) if k != 5)
    states = task_runs("killer")
    assert states.pop("block 4 (row 1, column 1)")[0] == "Crashed"
    assert {state for state, _ in states.values()} == {"Completed"}
    assert until(lambda: queue() == [], 90)


def test_a_node_that_vanishes_costs_the_blocks_in_flight_only(whole_slurm, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "node.tif", 6, 6)

    def vanish() -> None:
        until(lambda: len(lines(log)) >= 8 and {"node1", "node2"} <= {job[3] for job in queue()})
        subprocess.run([DEV_SLURM, "vanish", "node2"], check=True, capture_output=True)

    # The nodes are filled one after the other, unless jobs are too large for that.
    where = profile("slurm-cpu", cpu__maximum_jobs=2, cpu__memory=40)
    try:
        with meanwhile(vanish):
            assert run_on(where, slide, tmp_path / "out", faulty(log, seconds=0.6)).objects == 36
    finally:
        cancel_all()
        subprocess.run([DEV_SLURM, "start"], check=True, capture_output=True)
    done = counts(log)
    assert len(done) == 36
    assert sum(done.values()) <= 37
    until(lambda: queue() == [], 90)


def test_jobs_without_the_gpu_they_asked_for_refuse_to_work_and_are_given_up(slurm, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "wrong.tif")
    where = profile("slurm-gpu", gpu__directives=["--gres=none"])
    with pytest.raises(
        ClusterError, match=r"jobs in a row ended.*1 GPUs.*expected and 0 are there.*request as many.*doctor"
    ):
        run_on(where, slide, tmp_path / "out", faulty(tmp_path / "log"))
    assert until(lambda: queue() == [], 90)
