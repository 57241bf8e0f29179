"""The viewer's page in a real browser."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
import uvicorn

import slidesam
from slidesam.tasks.view.app import make_app
from slidesam.tasks.view.viewed import ViewedResult
from tests.support.ui_fixtures import keep
from tests.tasks.view.conftest import TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.browser]
READY = "body[data-ready]"


class Server(uvicorn.Server):
    """Runs in a thread of the test, where no signal can be caught."""

    def install_signal_handlers(self) -> None:
        pass


@pytest.fixture
def address(bright: ViewedResult) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(make_app(bright, TOKEN), log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/{TOKEN}/"
    server.should_exit = server.force_exit = True
    thread.join()
    listener.close()


def place_of(page, y: float, x: float) -> tuple[float, float]:
    """Where a pixel of the slide is on the screen, once nothing moves."""
    page.evaluate(
        "async (view) => { while (view.getZoom(true) !== view.getZoom(false)) await new Promise(requestAnimationFrame); }",
        page.evaluate_handle("slidesamView.viewer.viewport"),
    )
    at = page.evaluate(
        "([y, x]) => slidesamView.layers.image.imageToWindowCoordinates(new OpenSeadragon.Point(x, y))",
        [y + 0.5, x + 0.5],
    )
    return at["x"], at["y"]


def test_a_click_on_a_nucleus_shows_its_row(address: str, page, bright_result: slidesam.Result, tmp_path: Path) -> None:
    labels = bright_result.labels[:, :]
    table = pandas.read_parquet(bright_result.store.parent / "b.cells.objects.parquet").set_index("label")
    inside = table[
        [labels[int(row["centroid-0"]), int(row["centroid-1"])] == number for number, row in table.iterrows()]
    ]
    near = (inside["centroid-0"] - 300).abs() + (inside["centroid-1"] - 300).abs()
    first, second = (int(number) for number in near.nsmallest(2).index)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector(READY)
    assert page.title() == "b: cells"
    assert f"{len(table)} cells" in page.inner_text("#facts")
    # A click where the object is on the whole slide.
    page.mouse.click(*place_of(page, table.loc[first, "centroid-0"], table.loc[first, "centroid-1"]))
    page.wait_for_selector("#object-section:not([hidden])")
    assert page.inner_text("#object-name") == f"cells {first}"
    row = dict(line.split("\t") for line in page.inner_text("#row").splitlines())
    assert float(row["area"]) == table.loc[first, "area"]
    assert float(row["circularity"]) == pytest.approx(table.loc[first, "circularity"], rel=1e-3)
    # Another one by its number: it is brought to the middle of what is free, and a click there finds it again.
    page.keyboard.press("/")
    page.keyboard.type(str(second))
    page.keyboard.press("Enter")
    page.locator("#object-name", has_text=f"cells {second}").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#object-section").is_hidden()
    at = place_of(page, table.loc[second, "centroid-0"], table.loc[second, "centroid-1"])
    page.mouse.move(*at)
    position = f"x {int(table.loc[second, 'centroid-1'] + 0.5)}, y {int(table.loc[second, 'centroid-0'] + 0.5)} px"
    assert page.inner_text("#position").startswith(position)
    page.mouse.click(*at)
    page.wait_for_selector("#object-section:not([hidden])")
    assert page.inner_text("#object-name") == f"cells {second}"
    assert page.evaluate("slidesamView.layers.outlines.getOpacity()") == 1
    assert page.inner_text("#scale-text").endswith("µm")
    keep(page, "viewer", tmp_path)
    page.keyboard.press("m")
    assert page.evaluate(
        "[slidesamView.layers.outlines, slidesamView.layers.density].map((one) => one.getOpacity())"
    ) == [0, 1]
    assert page.inner_text("#legend-high").endswith("per mm²")
    assert complaints == []
    assert {url for url in requests if not url.startswith(address)} == set()
