"""Workers with more memory, step by step, for blocks that ran out of it.

Jobs grow by the factors of `memory_steps`. On this machine there is one step: a single worker has the memory of all. Step 0 is
the profile as it is.
"""

from __future__ import annotations

from slidesam.flows.cluster.jobs import jobs_of
from slidesam.flows.cluster.profile import (
    ClusterProfile,
    LocalGpuProfile,
    LocalProfile,
    QueueProfile,
    SlurmProfile,
    Stage,
)


def count_steps(profile: ClusterProfile, stage: Stage) -> int:
    """Count the steps by which a stage's workers can have more memory.

    Example:
        >>> [count_steps(profile, "cpu") for profile in (SlurmProfile(), LocalProfile(workers=4), LocalProfile(workers=1))]
        [2, 1, 0]
    """
    if isinstance(profile, SlurmProfile | QueueProfile):
        return len(jobs_of(profile, stage).memory_steps)
    if isinstance(profile, LocalProfile):
        return int(profile.n_workers > 1)
    return int(isinstance(profile, LocalGpuProfile) and profile.workers_per_gpu > 1)


def enlarge(profile: ClusterProfile, stage: Stage, step: int) -> ClusterProfile:
    """Return the profile whose workers have the memory of a step.

    Args:
        profile: The profile.
        stage: The stage; the jobs of other stages stay as they are.
        step: Up to `count_steps`.
    """
    if step == 0:
        return profile
    if isinstance(profile, SlurmProfile | QueueProfile):
        jobs = jobs_of(profile, stage)
        # None is kept without work: they are for a few blocks.
        larger = jobs.model_copy(update={"memory": jobs.memory * jobs.memory_steps[step - 1], "minimum_jobs": 0})
        return profile.model_copy(update={"gpu" if stage == "gpu" and profile.gpu is not None else "cpu": larger})
    if isinstance(profile, LocalProfile):
        memory = None if profile.memory is None else profile.memory * profile.n_workers
        return profile.model_copy(update={"workers": 1, "memory": memory})
    return profile.model_copy(update={"workers_per_gpu": 1})


def describe_step(profile: ClusterProfile, stage: Stage, step: int) -> str:
    """Say what the workers of a step have, for people.

    Example:
        >>> describe_step(SlurmProfile(), "cpu", 1)
        'jobs of 16 GiB'
    """
    larger = enlarge(profile, stage, step)
    if isinstance(larger, SlurmProfile | QueueProfile):
        jobs = jobs_of(larger, stage)
        shared = f", shared by {jobs.workers} workers" if jobs.workers > 1 else ""
        return f"jobs of {jobs.memory:g} GiB{shared}"
    if isinstance(larger, LocalProfile):
        return "one worker alone" + ("" if larger.memory is None else f", with {larger.memory:g} GiB")
    return "one worker per GPU"
