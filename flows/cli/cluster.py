"""Where the `slidesam` command computes: the options `--cluster` and `--cluster-set`, and `slidesam cluster`."""

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
        "--cluster",
        metavar="NAME|FILE",
        help="Where to compute: a profile of `slidesam cluster list`, or a profile's file.",
    ),
]
ClusterChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-set", metavar="A.B=C", help="One key of the profile, e.g. cpu.partition=short. Can be repeated."
    ),
]
cluster_app = typer.Typer(no_args_is_help=True, help="Show the cluster profiles, which say where to compute.")


def add_cluster_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(cluster_app, name="cluster")


def choose_profile(
    name: str | None, changes: Sequence[str] | None, workers: int | None = None, scheduler: str | None = None
) -> Any:
    """Return the profile that the options name; workers on this machine if they name none.

    Raises:
        SettingsError: They contradict each other, or the profile can't be used.
    """
    from slidesam.flows.cluster.find_profile import load_profile

    if scheduler is not None and workers is not None:
        raise SettingsError(
            "--workers starts workers here, but --scheduler uses a cluster's workers: give only one of them"
        )
    if scheduler is not None and name not in (None, "attach"):
        raise SettingsError(
            f"--scheduler uses a cluster that runs, but --cluster {name} starts one: give only one of them"
        )
    if workers is not None and name not in (None, "local"):
        raise SettingsError(
            f"--workers belongs to --cluster local; for {name} give --cluster-set, e.g. cpu.maximum_jobs={workers}"
        )
    overrides: dict[str, object] = read_overrides(changes or (), "--cluster-set", "cluster profile")
    if workers is not None:
        overrides["workers"] = workers
    if scheduler is not None:
        overrides["address"] = scheduler
    return load_profile(name or ("local" if scheduler is None else "attach"), overrides)


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
    """List the profiles that --cluster takes by name, and their files."""
    from slidesam.flows.cluster.find_profile import profile_names

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, path in sorted(profile_names().items()):
        comment = path.read_text().partition("\n")[0].removeprefix("#").strip()
        table.add_row(Text(name, "bold"), Text(comment), Text(str(path), "dim"))
    out.print(table)


@cluster_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Profile's name or file.")],
    changes: ClusterChanges = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder; the jobs' logs would be inside it.")
    ] = None,
) -> None:
    """Print what a profile would start: for a queue, the job scripts."""
    from slidesam.flows.cluster.jobs import job_script
    from slidesam.flows.cluster.profile import QueueProfile, SlurmProfile
    from slidesam.tasks.run.layout import jobs_folder

    profile = choose_profile(name, [*(changes or ()), *(["address=tls://HOST:PORT"] if name == "attach" else [])])
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
