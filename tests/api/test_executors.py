"""Executing steps in this process: order, retries, jobs that are added meanwhile, and the look at the lock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slidesam import executors
from slidesam.executors import StepExecutor
from slidesam.progress import StageReporter
from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.settings.sections import RunSettings


class Script:
    """A step that fails as its script says: for each job the errors of its first attempts."""

    def __init__(self, **failures: list[Exception]) -> None:
        self.failures = {int(job.removeprefix("job")): errors for job, errors in failures.items()}
        self.calls: list[int] = []

    def __call__(self, name: str, run: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        (job,) = arguments
        self.calls.append(job)
        if self.failures.get(job):
            raise self.failures[job].pop(0)
        return {"job": job}


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch):
    def run(script: Script, jobs: Any, retries: int = 1, **options: Any) -> list[tuple[int, Any]]:
        monkeypatch.setattr(executors, "execute_step", script)
        settings = SimpleNamespace(run=RunSettings(retries=retries, retry_delay=0))
        step: Any = SimpleNamespace(fn=lambda: None)
        executor = StepExecutor(StageReporter(), **options)
        results = executor.run_many(step, SimpleNamespace(settings=settings), jobs, lambda job: job)  # type: ignore[arg-type]
        return [(job[0], error if error is not None else facts["job"]) for job, facts, error in results]

    return run


def test_jobs_are_done_one_after_the_other(run_script) -> None:
    script = Script()
    assert run_script(script, [(1,), (2,), (3,)]) == [(1, 1), (2, 2), (3, 3)]
    assert script.calls == [1, 2, 3]


def test_a_job_that_fails_is_tried_again_and_the_last_error_handed_out(run_script) -> None:
    script = Script(job1=[ValueError("first")], job2=[ValueError("first"), ValueError("last")])
    (one, two, three) = sorted(run_script(script, [(1,), (2,), (3,)]), key=lambda entry: entry[0])
    assert (one, three) == ((1, 1), (3, 3))
    assert str(two[1]) == "last"
    assert sorted(script.calls) == [1, 1, 2, 2, 3]


def test_what_another_attempt_cannot_help_is_not_tried_again(run_script) -> None:
    script = Script(job1=[SegmenterError("no labels")])
    ((job, error),) = run_script(script, [(1,)], retries=5)
    assert (job, str(error), script.calls) == (1, "no labels", [1])


def test_the_lock_is_looked_at_now_and_then(run_script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_CHECK_SECONDS", -1.0)
    looks: list[int] = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise RuntimeError("lost")

    script = Script()
    with pytest.raises(RuntimeError, match="lost"):
        run_script(script, [(1,), (2,), (3,)], check=check)
    assert script.calls == [1]
