"""What nobody thinks of: intermediate results of an output folder that have been kept long enough, removed on a schedule."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slidesam.flows.prefect_api.leftovers import end_all_leftovers
from slidesam.tasks.errors import OutputError
from slidesam.tasks.folder.clean import clean as remove
from slidesam.tasks.settings.types import Duration, seconds_of


@flow(name="clean", flow_run_name=lambda: f"clean {flow_run.parameters['output']}", persist_result=False)
def clean(output: Path, keep: Duration | None = None) -> float:
    """Removes intermediate results of finished runs, and jobs that killed runs left; results stay, and what unfinished runs need.

    Args:
        output: Folder of the results.
        keep: How long what is intermediate stays once its run is finished, such as 12h or 7d; none = as each run's
            run.keep_work says.

    Returns:
        MiB that were removed.

    Raises:
        OutputError: Some of it can't be removed.
    """
    log = get_run_logger()
    if not output.is_dir():
        log.info("%s isn't there yet: nothing to remove", output)
        return 0.0
    end_all_leftovers(output, log.info)
    removed = remove(output, keep=None if keep is None else seconds_of(keep))
    failed = [f"{each.slide} {each.label}: {each.error}" for each in removed if each.error]
    total = sum(each.bytes for each in removed if not each.error) / 2**20
    log.info("%s: %.1f MiB removed, of %d runs", output, total, len(removed) - len(failed))
    if failed:
        raise OutputError(f"{output}: {len(failed)} runs can't be cleaned: {'; '.join(failed[:3])}")
    return total
