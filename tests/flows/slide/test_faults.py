"""Failures that happen: what is tried again, what is named, what the other blocks come to, and that the same command resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from slidesam.flows.cluster.keys import _OWNER
from slidesam.flows.cluster.semaphores import _digest
from slidesam.tasks.errors import BlockFailures, ClusterError, OutputError, SlideError, SlideGoneError
from slidesam.tasks.run.layout import RunPaths, jobs_folder
from slidesam.tasks.run.owner import Owner
from slidesam.tasks.run.service_folders import key_folder
from slidesam.tasks.settings.parse import make_settings
from tests.flows.slide.test_segment_slide import faulty, labels_of, segment, task_runs
from tests.support.lock_owners import write_lock
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)]


@pytest.fixture(scope="module")
def some_workers(prefect_server):
    """Workers that a test may kill: others take their place."""
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster

    with open_cluster(LocalProfile(workers=2)) as cluster:
        yield cluster


def done(log: Path) -> list[str]:
    return sorted(line for line in log.read_text().splitlines() if line.endswith("done"))


def test_a_block_that_ends_its_worker_is_named_and_costs_no_other(some_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "killer.tif")
    settings = faulty(log, fail_on=5, deed="kill", times=2) | {"run.retries": 1, "blocks.blocks_per_task": 4}
    with pytest.raises(
        BlockFailures, match=r"1 of 9 blocks failed \(block 4: block 4 ended its worker 2 times"
    ) as caught:
        segment(some_workers, slide, tmp_path / "out", settings)
    assert caught.value.block_ids == (4,)
    assert log.read_text().splitlines().count("5 failed") == 2
    assert done(log) == sorted(f"{k} done" for k in range(1, 10) if k != 5)
    # In another go it has a new chance: what killed it may be gone, as it is here.
    assert segment(some_workers, slide, tmp_path / "out", settings).objects == 9
    assert len(done(log)) == 9


def test_a_block_that_ends_its_worker_beside_another_costs_the_other_nothing(some_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "killer.tif")
    options = {"fail_on": 5, "deed": "kill", "times": 2, "blocks": 9, "patience": 2}
    settings = faulty(log, **options) | {"segmenter.target": "tests.support.faults:TwoPhase"}
    settings |= {"run.retries": 1, "blocks.blocks_per_task": 9}
    with pytest.raises(BlockFailures, match=r"1 of 9 blocks failed \(block 4: block 4 ended its worker 2 times"):
        segment(some_workers, slide, tmp_path / "out", settings)
    lines = log.read_text().splitlines()
    assert lines.count("5 failed") == 2
    # Begun beside the fifth, and begun again by itself.
    assert lines.count("6 begun") == 2
    assert done(log) == sorted(f"{k} done" for k in range(1, 10) if k != 5)


def test_a_block_that_hangs_is_ended_and_tried_again(some_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "hangs.tif")
    settings = faulty(log, fail_on=5, deed="hang", times=1) | {"run.block_timeout": 3, "blocks.blocks_per_task": 3}
    assert segment(some_workers, slide, tmp_path / "out", settings).objects == 9
    assert log.read_text().splitlines().count("5 failed") == 1
    assert len(done(log)) == 9


def test_a_block_that_always_hangs_is_given_up(some_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "hangs.tif")
    settings = faulty(log, fail_on=5, deed="hang") | {"run.block_timeout": "2s", "run.retries": 0}
    with pytest.raises(BlockFailures, match=r"block 4 took longer than run.block_timeout \(2 s\) once"):
        segment(some_workers, slide, tmp_path / "out", settings)
    assert len(done(log)) == 8
    traces = list((tmp_path / "out").rglob("4.trace.txt"))
    assert len(traces) == 1
    assert "faults.py" in traces[0].read_text()


def test_a_block_without_memory_fails_alone(two_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "memory.tif")
    settings = faulty(log, fail_on=5, deed="memory") | {"run.retries": 1, "blocks.blocks_per_task": 9}
    with pytest.raises(BlockFailures, match=r"1 of 9 blocks failed \(block 4: block 4 ran out of memory"):
        segment(two_workers, slide, tmp_path / "out", settings)
    # Once beside others, then twice (`run.retries`) by a worker that has the memory of all.
    assert log.read_text().splitlines().count("5 failed") == 3
    # What tried again a task of nine blocks did one block.
    assert done(log) == sorted(f"{k} done" for k in range(1, 10) if k != 5)


def test_when_every_block_fails_the_rest_isnt_tried(two_workers, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "all.tif", 8, 16)
    settings = faulty(tmp_path / "log") | {
        "segmenter.target": "tests.support.faults:wrong_shape",
        "segmenter.options": {},
    }
    with pytest.raises(BlockFailures, match=r"(\d+) more weren't tried after so many failures in a row") as caught:
        segment(two_workers, slide, tmp_path / "out", settings)
    assert 24 <= len(caught.value.failures) < 60


def test_a_slide_that_vanishes_midway_stops_at_once_and_goes_on_when_it_is_back(two_workers, tmp_path: Path) -> None:
    import threading

    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "gone.tif", 5, 5)
    kept = slide.rename(tmp_path / "kept.tif")
    os.link(kept, slide)
    settings = faulty(log, seconds=0.2) | {"image.convert": "never", "image.rechunk": "never", "run.retries": 0}

    def vanish() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            time.sleep(0.05)
        slide.unlink()

    thread = threading.Thread(target=vanish)
    thread.start()
    with pytest.raises(SlideGoneError, match=r"gone\.tif: isn't there"):
        segment(two_workers, slide, tmp_path / "out", settings)
    thread.join()
    before = len(done(log))
    assert before < 25
    os.link(kept, slide)
    assert segment(two_workers, slide, tmp_path / "out", settings).objects == 25
    assert len(done(log)) == 25


def test_a_tile_that_cant_be_decoded_is_named(two_workers, tmp_path: Path) -> None:
    log, image = tmp_path / "log", np.zeros((192, 192), np.uint8)
    for k in range(9):
        image[k // 3 * 64 + 20 : k // 3 * 64 + 40, k % 3 * 64 + 20 : k % 3 * 64 + 40] = k + 1
    slide = tmp_path / "damaged.tif"
    tifffile.imwrite(slide, image, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(slide) as tiff:
        offset, size = tiff.pages.first.dataoffsets[4], tiff.pages.first.databytecounts[4]
    with slide.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * size)
    settings = faulty(log) | {"image.rechunk": "never", "run.retries": 0}
    for way in ("always", "never"):
        with pytest.raises(SlideError, match=r"damaged\.tif: level 0, rows 0-192.*can't be decoded"):
            segment(two_workers, slide, tmp_path / way, settings | {"image.convert": way})
        assert not list((tmp_path / way).glob("*.run.json"))


def test_a_folder_that_cant_be_written_is_said_before_anything_is_computed(two_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "s.tif")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be made"):
        segment(two_workers, slide, tmp_path / "file" / "out", faulty(log))
    assert not log.exists()


@pytest.fixture
def full_disk(tmp_path: Path):
    """A disk of 1 MiB, and how to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("way", ["always", "never"])
def test_a_full_disk_is_said_and_with_more_room_the_same_command_finishes(
    two_workers, full_disk, tmp_path: Path, way: str
) -> None:
    disk, enlarge = full_disk
    log, slide = tmp_path / "log", tmp_path / "noise.tif"
    noise = np.random.default_rng(0).integers(1, 255, (1024, 1024)).astype(np.uint8)
    tifffile.imwrite(slide, noise, tile=(256, 256))
    settings = faulty(log) | {
        "image.convert": way, "image.rechunk": "never", "blocks.block_shape": 512, "run.retries": 0,
        "segmenter.target": "tests.flows.slide.test_faults:numbers", "segmenter.options": {},
    }  # fmt: skip
    with pytest.raises(OutputError, match=r"No space left on device.*make room there, then run the same command again"):
        segment(two_workers, slide, disk / "out", settings)
    assert not list(disk.glob("out/*.run.json"))
    enlarge()
    segment(two_workers, slide, disk / "out", settings)
    found = labels_of(disk / "out", "noise")
    segment(two_workers, slide, tmp_path / "elsewhere", settings)
    np.testing.assert_array_equal(found, labels_of(tmp_path / "elsewhere", "noise"))


def numbers(image):
    """Every pixel its own object: labels that don't compress."""
    return np.random.default_rng(int(image.astype(np.int64).sum())).permutation(image.size).reshape(image.shape) + 1


def test_a_worker_that_is_killed_costs_its_block_only(some_workers, tmp_path: Path) -> None:
    import threading

    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "w.tif", 4, 5)

    def kill_one() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 6:
            time.sleep(0.05)
        worker = next(
            process for process in psutil.Process().children(recursive=True)
            if "multiprocessing.spawn" in " ".join(process.cmdline()) and process.num_threads() > 2
        )  # fmt: skip
        worker.kill()

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert segment(some_workers, slide, tmp_path / "out", faulty(log, seconds=0.3)).objects == 20
    thread.join()
    # The block that was being computed has no line, or is done twice at most if it was killed between the line and its mark.
    assert 20 <= len(done(log)) <= 21


def test_what_a_run_leaves_that_is_killed_when_all_is_done_is_removed_by_the_next(some_workers, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "s.tif", 1, 1)
    segment(some_workers, slide, tmp_path / "out", faulty(log))
    ended = Owner.this_process("killed").model_copy(update={"born": 1})
    keys = key_folder(jobs_folder(tmp_path / "out"), "slidesam-killed")
    keys.mkdir(parents=True)
    (keys / _OWNER).write_text(ended.model_dump_json())
    semaphore = Path(f"/dev/shm/sem.slidesam-{ended.pid}-{ended.born}-{_digest(ended)}-x")
    semaphore.touch()
    lock = RunPaths(tmp_path / "out", "s", "cells").lock
    write_lock(lock, host=ended.host, born=1)
    assert segment(some_workers, slide, tmp_path / "out", faulty(log)).objects == 1
    assert len(done(log)) == 1
    assert not keys.exists()
    assert not semaphore.exists()
    assert not lock.exists()


def test_a_scheduler_that_is_killed_ends_the_run_and_the_next_goes_on(prefect_server, tmp_path: Path) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "s.tif", 4, 5)
    settings = faulty(log, seconds=0.3)
    with dask_cluster() as (scheduler, address):
        import threading

        def kill() -> None:
            while not log.exists() or len(log.read_text().splitlines()) < 6:
                time.sleep(0.05)
            scheduler.kill()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(ClusterError, match=r"scheduler is gone.*run the same command again"):
            segment_at(address, slide, tmp_path / "out", settings)
        thread.join()
    before = log.read_text().splitlines()
    assert 6 <= len(before) < 20
    with dask_cluster() as (_, address):
        assert segment_at(address, slide, tmp_path / "out", settings).objects == 20
    assert 20 <= len(done(log)) <= 22  # two were being computed


def segment_at(address: str, slide: Path, output: Path, overrides: dict) -> dict:
    from slidesam.flows.cluster.cluster import AttachProfile
    from slidesam.flows.slide.segment_slide import segment_slide

    return segment_slide(slide, output, make_settings(overrides=overrides), AttachProfile(address=address))


class dask_cluster:  # noqa: N801
    """A scheduler and two workers, each a process of its own."""

    def __enter__(self) -> tuple[subprocess.Popen, str]:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes = [
            subprocess.Popen([*dask, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet)
        ] + [
            subprocess.Popen(
                [*worker, address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "20",
                 "--preload", "slidesam.flows.cluster.on_worker"],
                **quiet,
            )
            for _ in range(2)
        ]  # fmt: skip
        return self.processes[0], address

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def test_no_more_tasks_wait_than_the_cluster_needs(two_workers, tmp_path: Path, monkeypatch) -> None:
    from slidesam.flows.slide import in_flight as stream

    monkeypatch.setattr(stream.stream_tasks, "__defaults__", (4,))
    seen = []
    plain = stream._read_outcome
    import gc

    from prefect_dask.task_runners import PrefectDaskFuture

    def counted(future):
        # Those that only a cycle keeps are let go.
        gc.collect()
        # Not isinstance: it asks objects for their class, and some of torch's answer with a warning.
        seen.append(sum(type(each) is PrefectDaskFuture for each in gc.get_objects()))
        return plain(future)

    monkeypatch.setattr(stream, "_read_outcome", counted)
    slide = write_numbered_slide(tmp_path / "many.tif", 3, 4)
    # What other tests have left isn't looked at each time.
    gc.freeze()
    try:
        assert segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log")).objects == 12
    finally:
        gc.unfreeze()
    assert len(seen) > 12
    # One or two more are held for an instant by the threads that tell of their end.
    assert max(seen) - seen[0] <= 6, seen
    assert set(task_runs("many", 12).values()) == {("Completed", 1)}


def test_two_runs_of_one_result_dont_meet(two_workers, tmp_path: Path) -> None:
    from slidesam.tasks.plan import plan_run
    from slidesam.tasks.run.lock import LockedError, locked

    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "locked.tif")
    run = plan_run(slide, tmp_path / "out", make_settings(overrides=faulty(log)))
    place = run.paths.lock
    with (
        locked(place, 'flow run "first"', target="locked"),
        pytest.raises(LockedError, match=r'locked \(cells\) in .*flow run "first"'),
    ):
        segment(two_workers, slide, tmp_path / "out", faulty(log))
    assert not log.exists()
    assert not run.paths.state.exists()
    # Of a process that was killed the lock is taken over at once.
    hold = (
        "import os, signal, sys; from pathlib import Path; from slidesam.tasks.run.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'the dead', target='x'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", hold, str(place)]).returncode == -signal.SIGKILL
    assert place.exists()
    assert segment(two_workers, slide, tmp_path / "out", faulty(log)).objects == 9
    assert not place.exists()


def test_an_empty_slide_has_no_blocks_and_no_objects(two_workers, tmp_path: Path) -> None:
    import json

    slide = tmp_path / "empty.tif"
    tifffile.imwrite(slide, np.full((256, 256), 7, np.uint8), tile=(64, 64))
    facts = segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log"))
    assert (facts.objects, facts.blocks) == (0, 16)
    assert json.loads((tmp_path / "out" / "empty.cells.run.json").read_text())["blocks_without_tissue"] == list(
        range(16)
    )
    assert labels_of(tmp_path / "out", "empty").max() == 0
