"""What is ended of a killed run: only what is provably a run's of the output folder, whatever its state file says."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.cluster.find_profile import load_profile
from slidesam.flows.cluster.job_names import select_own_jobs
from slidesam.flows.prefect_api import endings
from slidesam.flows.prefect_api.leftovers import end_all_leftovers
from slidesam.tasks.run.layout import RunPaths, jobs_folder
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.status import read_states, write_state
from tests.support.lock_owners import write_lock
from tests.support.other_user import OTHER, as_other_user, needs_root, open_folder

SQUEUE = r"""#!/bin/bash
for word in "$@"; do case $word in --name=*) names=${word#--name=} ;; esac; done
while IFS='|' read -r id name rest; do
    case ",$names," in *",$name,"*) echo "$id|$name|$rest" ;; esac
done <"$JOBS"
"""
SCANCEL = r"""#!/bin/bash
for id in "$@"; do sed -i "/^$id|/d" "$JOBS"; done
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A queue of text: squeue and scancel that read and change a file. Takes names of jobs, returns a list of those left."""
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    programs.mkdir()
    for name, script in {"squeue": SQUEUE, "scancel": SCANCEL, "sbatch": ""}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))

    def fill(*names: str):
        jobs.write_text("".join(f"{number}|{name}|RUNNING|None|node1\n" for number, name in enumerate(names, 1)))
        return lambda: [line.split("|")[1] for line in jobs.read_text().splitlines()]

    return fill


def job_name(output: Path) -> str:
    return Cluster(load_profile("slurm-cpu"), jobs_folder(output)).job_names[0]


def test_the_names_of_a_clusters_jobs_are_those_of_its_output_folder(tmp_path: Path) -> None:
    logs, profile = jobs_folder(tmp_path), load_profile("slurm-gpu")
    names = Cluster(profile, logs).job_names
    assert [name.split("-", 3)[3] for name in names] == ["cpu", "gpu", "gpu-step1", "gpu-step2"]
    assert select_own_jobs(names, logs) == names
    # Names are public: a folder with the same hash must not be found by trying.
    assert len(names[0].split("-")[1]) >= 24
    assert select_own_jobs(names, jobs_folder(tmp_path / "other")) == []
    assert select_own_jobs(Cluster(profile).job_names, logs) == []
    (tmp_path / "link").symlink_to(tmp_path)
    assert select_own_jobs(names, jobs_folder(tmp_path / "link")) == names


def test_clean_cancels_jobs_of_killed_runs_of_this_folder_only(tmp_path: Path, queue) -> None:
    output, notes = tmp_path / "out", []
    own, other, at_work = job_name(output), job_name(tmp_path / "other"), job_name(output)
    foreign = ["payroll", "slidesam-01234567-cpu", other, f"{own},payroll", f"{own} ", "--user=root"]
    left = queue(own, at_work, *foreign)
    write_state(output, "killed", "cells", "running", jobs=(own, at_work, *foreign))
    write_state(output, "running", "cells", "running", jobs=(at_work,))
    with locked(RunPaths(output, "running", "cells").lock, "a run", target="it"):
        end_all_leftovers(output, notes.append)
    assert left() == [at_work, *foreign]
    assert [note for note in notes if "cancelled 1 job that a killed run had left: 1" in note]
    assert [
        note for note in notes if "not cancelled, since these names aren't those of jobs for" in note and other in note
    ]
    assert [run.state.status for run in read_states(output)] == ["stopped", "running"]


def test_a_run_that_cannot_be_locked_costs_no_other(tmp_path: Path, queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, on whose folder we have no rights, and one of another version."""
    output, notes = tmp_path / "out", []
    own, theirs = job_name(output), job_name(output)
    left = queue(own, theirs)
    write_state(output, "a", "cells", "running", jobs=(own, theirs))
    write_state(output, "theirs", "cells", "running", jobs=(theirs,))
    RunPaths(output, "new", "cells").work.mkdir(parents=True)
    RunPaths(output, "new", "cells").state.write_text('{"status": 7}')
    lock = RunPaths(output, "theirs", "cells").lock
    lock.mkdir()
    end_all_leftovers(output, notes.append)
    assert left() == [theirs]
    assert [run.state.status for run in read_states(output)] == ["stopped", "unreadable", "running"]
    assert [note.partition(" is left alone: ")[0] for note in notes[:2]] == ["new (cells)", "theirs (cells)"]


@needs_root
def test_clean_goes_on_past_another_users_run(queue) -> None:
    notes: list[str] = []
    queue()
    with open_folder() as output:
        write_state(output, "a", "cells", "running")
        write_lock(RunPaths(output, "a", "cells").lock, age=86400)
        write_state(output, "b", "cells", "running")
        for path in [output, output / ".slidesam", *(output / ".slidesam" / "b").rglob("*")]:
            os.chown(path, OTHER, OTHER)
        with as_other_user():
            end_all_leftovers(output, notes.append)
        assert [run.state.status for run in read_states(output)] == ["running", "stopped"]
    assert re.match(r"a \(cells\) is left alone: .*Permission denied", notes[0])
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("parameter", "is_ended"), [("out", True), ("link", True), ("other", False), ("relative", False), (None, False)]
)
def test_only_a_flow_run_of_this_folder_is_ended(
    parameter: str | None, is_ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    path = "out" if parameter == "relative" else str(tmp_path / str(parameter))
    run, ended = SimpleNamespace(parameters={} if parameter is None else {"output": path}, state=None), []
    client = SimpleNamespace(read_flow_run=lambda _: run, set_flow_run_state=lambda *_, **__: ended.append(run))

    class Server:
        def __enter__(self):
            return client

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(endings, "get_client", lambda **_: Server())
    monkeypatch.setattr(endings, "_end_children", lambda *_: None)
    endings.end_flow_run(uuid.uuid4(), tmp_path / "out", "it was killed")
    assert bool(ended) == is_ended
