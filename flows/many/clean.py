"""Removes old intermediate results of an output folder on a schedule."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from slidesam.flows.prefect_api.leftovers import end_all_leftovers
from slidesam.flows.run_log import run_log
from slidesam.tasks.errors import OutputError
from slidesam.tasks.folder.clean import clean_folder
from slidesam.tasks.settings.types import Duration, PastedPath, seconds_of


@flow(name="clean", flow_run_name=lambda: f"clean {flow_run.parameters['output']}", persist_result=False)
def clean(output: PastedPath, keep: Duration | None = None) -> float:
    """Remove intermediate results of finished runs, and jobs that killed runs left. Results stay, and what unfinished runs need.

    Args:
        output: Folder of the results.
        keep: How long intermediate results stay after their run has finished, such as 12h or 7d; empty = run.keep_work of
            each run.

    Returns:
        How many MiB were removed.

    Raises:
        OutputError: Some intermediate results can't be removed.
    """
    log = run_log()
    if not output.is_dir():
        log.info("%s doesn't exist yet: nothing to remove", output)
        return 0.0
    end_all_leftovers(output, log.info)
    removed = clean_folder(output, keep=None if keep is None else seconds_of(keep))
    failed = [f"{run.slide} {run.label}: {run.error}" for run in removed if run.error]
    total = sum(run.bytes for run in removed if not run.error) / 2**20
    log.info("%s: %.1f MiB removed, of %d runs", output, total, len(removed) - len(failed))
    if failed:
        raise OutputError(f"{output}: {len(failed)} runs can't be cleaned: {'; '.join(failed[:3])}")
    return total
