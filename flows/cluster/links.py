"""What Dask serves over HTTP: nothing, or a dashboard whose link, with the token that it asks for, only the user can read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slidesam.flows.cluster.secret_files import read_secret
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.run.service_folders import list_key_folders

LOOPBACK = "127.0.0.1"
_SUFFIX = ".link"
_PRELOAD = "slidesam.flows.cluster.on_scheduler"


def close_http(server: Any) -> None:
    """Close the HTTP port of a scheduler or worker, which Dask opens in any case."""
    server.http_server.stop()
    # Clients ask for the port, and would name a page that isn't there.
    server.http_server.port = 0


def link_file(folder: Path, pool: str) -> Path | None:
    """Return the file for the link of a pool's dashboard; None without bokeh, which a dashboard needs."""
    return folder / f"{pool}{_SUFFIX}" if find_spec("bokeh") is not None else None


def dashboard_options(link: Path | None, port: int = 0) -> dict[str, Any]:
    """Return the options of a Dask scheduler that has a dashboard with a token, or none.

    Args:
        link: File for the link; None = there is no dashboard.
        port: Port of the dashboard; 0 = any.
    """
    arguments = [] if link is None else ["--link-file", str(link), "--link-port", str(port)]
    # Dask's own dashboard answers everybody.
    return {"dashboard": False, "preload": [_PRELOAD], "preload_argv": [arguments]}


def read_page(link: Path | None) -> str | None:
    """Return the address of a dashboard without its token; None if there is none."""
    return read_secret(link).partition("?")[0] if link is not None and link.exists() else None


def find_page_link(output: Path, page: str) -> str | None:
    """Return the link, with its token, of a dashboard that runs for an output folder; None for other users."""
    for folder in list_key_folders(jobs_folder(output)):
        for path in folder.glob(f"*{_SUFFIX}"):
            try:
                link = read_secret(path).strip()
            except OSError:
                continue
            if link.partition("?")[0] == page:
                return link
    return None
