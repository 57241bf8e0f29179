"""Options and commands for cluster profiles: `--cluster`, `--cluster-set`, `slidesam cluster`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from slidesam.flows.console import out
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import parse_override

ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="NAME|FILE", help="Where to compute: a profile of `slidesam cluster list`, or a file."
    ),
]
ClusterChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-set", metavar="A.B=C", help="One key of the profile, e.g. cpu.partition=short; may be repeated."
    ),
]
cluster_app = typer.Typer(no_args_is_help=True, help="Profiles of clusters: where to compute.")


def add_cluster_commands(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.add_typer(cluster_app, name="cluster")


def choose_profile(
    name: str | None, changes: Sequence[str] | None, workers: int | None = None, scheduler: str | None = None
) -> Any:
    """The profile that the options name; workers on this machine if they name none.

    Raises:
        SettingsError: They contradict each other, or the profile can't be used.
    """
    from slidesam.flows.cluster.find_profile import load_profile

    if scheduler is not None and workers is not None:
        raise SettingsError("--workers starts workers here and --scheduler uses those of a cluster: give one of them")
    if scheduler is not None and name not in (None, "attach"):
        raise SettingsError(f"--scheduler uses a cluster that runs, and --cluster {name} starts one: give one of them")
    if workers is not None and name not in (None, "local"):
        raise SettingsError(
            f"--workers is of --cluster local; for {name} give --cluster-set, e.g. cpu.maximum_jobs={workers}"
        )
    put: dict[str, object] = read_overrides(changes or (), "--cluster-set", "cluster profile")
    if workers is not None:
        put["workers"] = workers
    if scheduler is not None:
        put["address"] = scheduler
    return load_profile(name or ("local" if scheduler is None else "attach"), put)


def read_overrides(texts: Sequence[str], option: str, owner: str) -> dict[str, Any]:
    """Read the `a.b=c` that an option was given.

    Args:
        texts: What the option was given.
        option: The option, for messages.
        owner: What the names belong to, for messages.

    Raises:
        BadParameter: A text has no `=`.
        SettingsError: A value isn't valid YAML.
    """
    for text in texts:
        if "=" not in text:
            raise typer.BadParameter(f"{text!r} is not of the form a.b=c", param_hint=option)
    return dict(parse_override(text, owner) for text in texts)


@cluster_app.command("list")
def list_profiles() -> None:
    """List the profiles that --cluster takes by name, and where each lies."""
    from slidesam.flows.cluster.find_profile import profile_names

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, path in sorted(profile_names().items()):
        comment = path.read_text().partition("\n")[0].removeprefix("#").strip()
        table.add_row(Text(name, "bold"), Text(comment), Text(str(path), "dim"))
    out.print(table)


@cluster_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile.")],
    changes: ClusterChanges = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder, beside which the jobs' logs would lie.")
    ] = None,
) -> None:
    """Print what a profile would start: for a queue, the job scripts that would be submitted."""
    from slidesam.flows.cluster.jobs import job_script
    from slidesam.flows.cluster.profile import QueueProfile, SlurmProfile
    from slidesam.tasks.run.layout import jobs_folder

    profile = choose_profile(name, [*(changes or ()), *(["address=tcp://HOST:PORT"] if name == "attach" else [])])
    if not isinstance(profile, SlurmProfile | QueueProfile):
        out.print(Text(yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False).rstrip()))
        return
    logs = None if output is None or isinstance(profile, QueueProfile) else jobs_folder(output)
    pools = (("cpu", "the stages that need no accelerator" if profile.gpu else "all stages"), ("gpu", "segmenting"))
    for pool, stages in pools if profile.gpu else pools[:1]:
        jobs = profile.gpu if pool == "gpu" else profile.cpu
        assert jobs is not None
        out.print(Text(f"# {pool}: {stages}; {jobs.minimum_jobs} to {jobs.maximum_jobs} jobs", "bold"))
        out.print(Text(job_script(profile, pool, f"slidesam-NAME-{pool}", logs)))  # type: ignore[arg-type]
