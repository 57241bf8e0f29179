"""`slidesam view`: a finished result in the browser, on this machine only."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slidesam.flows.cli.finished import finished_runs
from slidesam.flows.console import err, out, say
from slidesam.tasks.errors import SettingsError

if TYPE_CHECKING:
    from starlette.applications import Starlette

_HOST = "127.0.0.1"


def add_view_command(app: typer.Typer) -> None:
    """Add `slidesam view` to the command line."""
    app.command("view")(_view)


def _view(
    store: Annotated[Path, typer.Argument(metavar="RESULT", help="A result: <name>.ome.zarr in the output folder.")],
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Only this label image; by default all finished ones."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on; by default a free one.")
    ] = None,
    is_browser_opened: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser, or print its address only.")
    ] = True,
    lines: Annotated[
        bool, typer.Option("--lines", help="Print lines of Python that open the result in napari, and start nothing.")
    ] = False,
) -> None:
    """Show a finished result in the browser: image, outlines, and the row of an object that is clicked."""
    records = finished_runs(store, label)
    if lines:
        from slidesam.tasks.view.napari_lines import write_napari_lines

        sys.stdout.write(write_napari_lines(store.absolute(), records))
        return
    from slidesam.tasks.view.app import make_app
    from slidesam.tasks.view.viewed import ViewedResult

    with err.status("opening the result"):
        viewed = ViewedResult(store.absolute().parent, records)
    for note in viewed.notes:
        say("[yellow]![/]", note)
    token = secrets.token_urlsafe(24)
    with _listen(port) as listener:
        address = f"http://{_HOST}:{listener.getsockname()[1]}/{token}/"
        say(" ", address)
        out.print("Ctrl-C ends it. Only who knows this address can see the slide.")
        app = make_app(viewed, token, lambda message: say("[red]✗[/]", message))
        with tempfile.TemporaryDirectory(prefix="slidesam-view-") as folder:
            if is_browser_opened and _has_screen():
                page = _write_way(Path(folder), address)
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
            _serve(app, listener)


def _listen(port: int | None) -> socket.socket:
    """Listen on a port of this machine only; requests wait until the server takes them.

    Raises:
        SettingsError: The port is in use.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port or 0))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"--port {port} can't be used ({error.strerror}): choose another, or leave it out for a free one"
        ) from error
    return listener


def _write_way(folder: Path, address: str) -> str:
    """Write a page that leads to the address; return where it lies, as a URL.

    What a browser is started with can be seen by all users of the machine. This folder is only the user's.
    """
    page = folder / "open.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={address}">')
    return page.as_uri()


def _serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off", ws="none",
        # Browsers keep their connections open.
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn has ended by now, and passes the signal on.
        return


def _has_screen() -> bool:
    """Whether a browser would have a window: without a screen, one that runs in the terminal would take it over."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
