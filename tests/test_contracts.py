"""What slidesam needs inside other packages beyond what they document: each test names the part, and what to adapt if it moves.

The upper bounds in pyproject.toml admit what these tests have seen. micro-sam has its own:
tests/tasks/segmenters/microsam/test_library.py.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import inspect
import re
import threading
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement

from slidesam.flows.cluster.jobs import cluster_class
from slidesam.flows.cluster.profile import SlurmProfile
from tests.support import ROOT

# Module, attribute, what uses it. A dotted attribute is one of a class.
PARTS = [
    # flows/cluster/keeper.py replaces the decisions of Dask's Adaptive, which closes workers in the middle of a block:
    # https://github.com/dask/distributed/issues/4069
    *(
        ("distributed.deploy.adaptive", f"Adaptive.{method}", "JobKeeper")
        for method in ("target", "safe_target", "workers_to_close", "scale_down", "scale_up", "plan", "observed")
    ),
    ("distributed.deploy.spec", "SpecCluster._new_worker_name", "JobKeeper.__init__"),
    # flows/cluster/on_worker.py leaves before the job's end: Dask's lifetime doesn't wait for the block that is computed.
    # https://github.com/dask/distributed/issues/3141
    ("distributed.worker", "Worker.close_gracefully", "on_worker"),
    # flows/cluster/on_nanny.py notes what ended a worker: Dask tells nobody but its log.
    ("distributed.nanny", "Nanny._on_worker_exit_sync", "on_nanny"),
    ("distributed.worker_memory", "NannyMemoryManager.memory_monitor", "on_nanny"),
    ("distributed.worker_state_machine", "WorkerState.executing_count", "on_worker"),
    ("distributed.core", "Status.paused", "on_worker"),
    ("distributed.core", "Status.failed", "keeper.kept_cluster"),
    ("dask_jobqueue.core", "JobQueueCluster._get_worker_security", "keeper.kept_cluster"),
    # tasks/labels/kernels.py
    ("numba.core.config", "_config_fname", "kernels"),
    # flows/cluster/on_scheduler.py
    ("distributed.spans", "SpansSchedulerExtension.observe_tasks", "on_scheduler.NoSpans"),
    ("distributed.spans", "SpansSchedulerExtension.heartbeat", "on_scheduler.NoSpans"),
    # flows/slide/in_flight.py
    ("distributed.scheduler", "KilledWorker", "in_flight"),
    ("prefect.futures", "PrefectWrappedFuture.wrapped_future", "in_flight"),
    # flows/prefect_api/serve.py
    ("prefect.server.api.server", "create_app", "prefect_api.serve"),
    # flows/cluster/task_runner.py
    ("prefect_dask.task_runners", "DaskTaskRunner.submit", "SharedTaskRunner"),
    ("prefect_dask.task_runners", "PrefectDaskFuture", "SharedTaskRunner"),
    ("prefect.context", "SettingsContext.serialize", "Connection"),
    ("prefect.context", "serialize_context", "SharedTaskRunner"),
    ("prefect.task_engine", "run_task_sync", "run_sent_task"),
    # flows/slide/stages.py
    ("prefect.context", "FlowRunContext.model_copy", "run_stage"),
    # flows/prefect_api/server.py
    ("prefect.events.worker", "EventsWorker.drain_all", "prefect_api.server"),
    ("prefect.logging.handlers", "APILogHandler.flush", "prefect_api.server"),
    # flows/slide/segment_slide.py
    ("prefect.exceptions", "TerminationSignal", "segment_slide"),
    # infra/prefect-server/worker.py
    ("prefect.workers.process", "ProcessWorker.get_and_submit_flow_runs", "infra/prefect-server/worker.py"),
    # tasks/slides/tiff/codec.py: what else of a page the decoder looks at, tests/tasks/slides/test_reader.py shows
    ("tifffile", "TiffPage.decode.func", "slides.tiff.codec"),
    # tasks/slides/zarr/source.py
    ("zarr", "Array.from_dict", "slides.zarr.source"),
    ("zarr.core.buffer", "Buffer", "slides.zarr.source"),
    ("zarr.core.buffer", "BufferPrototype", "slides.zarr.source"),
    ("zarr.storage", "WrapperStore.get", "slides.zarr.source"),
    # tasks/store/ome_zarr.py
    ("zarr.core.sync", "loop", "store.ome_zarr"),
    ("zarr.core.sync", "iothread", "store.ome_zarr"),
    ("zarrs", "ZarrsCodecPipeline", "store.ome_zarr"),
]
BOUNDED = ("dask", "dask-jobqueue", "distributed", "micro-sam", "prefect", "prefect-dask", "tifffile", "zarr", "zarrs")


@pytest.mark.parametrize(("module", "name", "user"), PARTS, ids=[f"{module}.{name}" for module, name, _ in PARTS])
def test_is_where_it_was(module: str, name: str, user: str) -> None:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{module}.{name} has moved ({error}): adapt {user}, then the bound in pyproject.toml")


def test_a_nanny_remembers_the_worker_that_it_ended_for_memory_and_hands_its_exit_on() -> None:
    from distributed.nanny import Nanny
    from distributed.worker_memory import NannyMemoryManager

    assert "self._last_terminated_pid = process.pid" in inspect.getsource(NannyMemoryManager), "adapt on_nanny._Watch"
    assert "on_exit=self._on_worker_exit_sync" in inspect.getsource(Nanny), "adapt on_nanny.dask_setup"
    assert "env=self.env" in inspect.getsource(Nanny), "adapt on_nanny._Watch"


def test_adaptive_takes_an_interval_and_a_number_of_waits() -> None:
    from distributed.deploy.adaptive import Adaptive

    known = inspect.signature(Adaptive.__init__).parameters.keys()
    assert {"cluster", "interval", "wait_count", "minimum", "maximum"} <= known, "Adaptive: adapt JobKeeper.__init__"


def test_a_cluster_of_jobs_names_them_by_a_function_of_its_own() -> None:
    """`JobKeeper` replaces it on the cluster, so `SpecCluster` has to look it up there, with its own name in `_name`."""
    from distributed.deploy.spec import SpecCluster

    source = inspect.getsource(SpecCluster)
    assert "self._new_worker_name(" in source, "SpecCluster._new_worker_name isn't called any more: adapt JobKeeper"
    for books in ("worker_spec", "workers", "_name"):
        assert re.search(rf"self\.{books}\b", source), f"SpecCluster.{books} is gone: adapt JobKeeper"


def test_a_job_of_dask_jobqueue_has_what_keeper_and_doctor_read() -> None:
    job = cluster_class(SlurmProfile(kind="slurm")).job_cls
    for name in ("start", "close", "status", "job_script", "submit_command", "cancel_command"):
        assert hasattr(job, name), (
            f"dask_jobqueue's job has no {name} any more: adapt flows.cluster and flows.doctor.queue"
        )
    source = inspect.getsource(importlib.import_module("dask_jobqueue.core").Job)
    for name in ("job_id", "job_name"):
        assert f"self.{name}" in source, f"dask_jobqueue's job has no {name} any more: adapt JobKeeper"


def test_a_workers_memory_manager_has_the_limits_that_on_worker_sets() -> None:
    from distributed.worker_memory import WorkerMemoryManager

    known = WorkerMemoryManager.__annotations__
    assert {"memory_limit", "memory_pause_fraction"} <= known.keys(), "WorkerMemoryManager: adapt on_worker"


@pytest.mark.parametrize("key", ["distributed.deploy.lost-worker-timeout", "distributed.nanny.pre-spawn-environ"])
def test_dask_knows_the_settings_that_clusters_change(key: str) -> None:
    import dask
    import distributed  # noqa: F401

    assert dask.config.get(key, None) is not None, f"Dask has no setting {key} any more: adapt flows.cluster.cluster"


def test_a_prefect_worker_lists_the_runs_that_it_submits() -> None:
    from prefect.workers.base import BaseWorker

    source = inspect.getsource(BaseWorker)
    assert "self._submitting_flow_run_ids" in source, "BaseWorker: adapt infra/prefect-server/worker.py"


def test_zarr_keeps_its_event_loop_and_thread_in_lists() -> None:
    from zarr.core import sync

    sync.sync(asyncio.sleep(0))
    assert isinstance(sync.loop[0], asyncio.AbstractEventLoop), "zarr.core.sync.loop: adapt store.ome_zarr"
    assert isinstance(sync.iothread[0], threading.Thread), "zarr.core.sync.iothread: adapt store.ome_zarr"


@pytest.mark.parametrize("package", BOUNDED)
def test_a_package_whose_inside_is_used_has_an_upper_bound_that_admits_the_installed_one(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    (requirement,) = [each for each in map(Requirement, listed) if each.name == package]
    assert any(bound.operator == "<" for bound in requirement.specifier), f"{package} has no upper bound"
    assert importlib.metadata.version(package) in requirement.specifier
