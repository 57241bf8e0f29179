"""The web application of the viewer: a page, tiles, and rows. It reads, from one result, for one person on this machine.

Whoever can't name the path, which begins with a random token, gets nothing. Hosts other than this machine's names are refused, so
that no other page can reach the server by a name of its own that leads here (DNS rebinding). The page loads nothing from
elsewhere, and the browser is told to hold it to that.
"""

from __future__ import annotations

import io
import json
import math
import secrets
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from html import escape
from importlib.resources import files
from typing import Any

import anyio
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slidesam.tasks.errors import SlidesamError, in_one_line
from slidesam.tasks.pages.density import RAMP
from slidesam.tasks.view.density_map import SmoothMap, choose_cell, draw_smooth_density
from slidesam.tasks.view.image_tiles import ShownChannel, draw_image_tile
from slidesam.tasks.view.object_shapes import find_object
from slidesam.tasks.view.outline_tiles import FINENESS, colour_outlines, draw_outline_tile
from slidesam.tasks.view.page_facts import describe_object, describe_result, summarise_label
from slidesam.tasks.view.viewed import ViewedLabels, ViewedResult

HOSTS = ("127.0.0.1", "localhost")
_STATIC = {
    "viewer.js": "text/javascript",
    "viewer.css": "text/css",
    "openseadragon.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# The one style that OpenSeadragon puts into the page: no line around the slide where there is no mouse.
_OWN_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
_HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src 'self'; style-src 'self' {_OWN_STYLE}; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
# Tiles that are drawn at once, so that memory is bounded.
_AT_ONCE = 4
_MOST_CHANNELS = 8
_MAPS_KEPT = 8
_JPEG_QUALITY = 90


def make_app(viewed: ViewedResult, token: str, report: Callable[[str], None] = lambda message: None) -> Starlette:
    """Make the application.

    Args:
        viewed: The result.
        token: First part of every path.
        report: Is told of each error, once.
    """
    views = _Views(viewed, report)
    label = "/{token}/labels/{label}"
    routes = [
        Route("/{token}/", views.show_page),
        Route("/{token}/info.json", views.describe),
        Route("/{token}/image/{level:int}/{row:int}/{column:int}.jpg", views.draw_image),
        Route(f"{label}/outlines/{{level:int}}/{{row:int}}/{{column:int}}.png", views.draw_outlines),
        Route(f"{label}/summary.json", views.summarise),
        Route(f"{label}/density.json", views.describe_density),
        Route(f"{label}/density.png", views.show_density),
        Route(f"{label}/objects/{{object:int}}", views.find_object),
        Route(f"{label}/at/{{y:int}}/{{x:int}}", views.find_object_at),
        Route("/{token}/{file}", views.send_file),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        Middleware(_Guard, token=token),
    ]
    return Starlette(routes=routes, middleware=middleware)


class _Guard:
    """Answers 404 to whoever doesn't know the token, and adds headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        first = scope["path"].split("/")[1] if "/" in scope["path"] else ""
        # Compared in constant time, so that answers don't tell how much of a guess is right.
        if not secrets.compare_digest(first.encode(), self._token):
            await Response("Not Found", 404, _HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Views:
    """What the application answers."""

    def __init__(self, viewed: ViewedResult, report: Callable[[str], None]) -> None:
        self._viewed, self._report = viewed, report
        self._reported: set[str] = set()
        folder = files("slidesam.tasks.view") / "static"
        self._files = {name: (folder / name).read_bytes() for name in _STATIC}
        title = escape(f"{viewed.slide.name}: {', '.join(viewed.labels)}")
        self._page = (folder / "index.html").read_text().replace("{{title}}", title)
        self._limiter: anyio.CapacityLimiter | None = None
        self._draw_map = lru_cache(_MAPS_KEPT)(self._draw_map_anew)

    async def show_page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers={"cache-control": "no-store"})

    async def send_file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], media_type=_STATIC[name], headers={"cache-control": "private, max-age=3600"})

    async def describe(self, request: Request) -> Response:
        return _to_json(describe_result(self._viewed))

    async def draw_image(self, request: Request) -> Response:
        level, row, column = (request.path_params[name] for name in ("level", "row", "column"))
        channels = _parse_channels(request.query_params.get("c", ""), self._viewed)
        draw = partial(draw_image_tile, self._viewed.image, 2 ** min(level, 40), row, column, channels)
        return await self._answer(request, lambda: _to_jpeg(draw()))

    async def draw_outlines(self, request: Request) -> Response:
        labels = self._find_labels(request)
        level, row, column = (request.path_params[name] for name in ("level", "row", "column"))
        scale, hidden = Fraction(2 ** min(level, 40), FINENESS), _parse_hidden(request)

        def draw() -> Response:
            is_outline, ids = draw_outline_tile(labels.levels, scale, row, column)
            picture = colour_outlines(is_outline, ids, labels.classes, labels.colours(self._viewed.outline), hidden)
            return _to_png(picture, transparency=0)

        return await self._answer(request, draw)

    async def summarise(self, request: Request) -> Response:
        labels = self._find_labels(request)
        return await self._answer(request, lambda: _to_json(summarise_label(labels)))

    async def describe_density(self, request: Request) -> Response:
        labels, hidden = self._find_labels(request), _parse_hidden(request)

        def describe() -> Response:
            cell, drawn = choose_cell(self._viewed.slide.shape), self._draw_map(labels, hidden)
            if drawn is None:
                return _to_json(None)
            unit = "mm²" if self._viewed.slide.mpp else "1000 × 1000 px"
            return _to_json(
                {"width": drawn.picture.shape[1] * cell, "highest": drawn.highest, "unit": unit, "stops": RAMP}
            )

        return await self._answer(request, describe)

    async def show_density(self, request: Request) -> Response:
        labels, hidden = self._find_labels(request), _parse_hidden(request)

        def draw() -> Response:
            drawn = self._draw_map(labels, hidden)
            if drawn is None:
                raise HTTPException(404)
            return _to_png(Image.fromarray(drawn.picture))

        return await self._answer(request, draw)

    async def find_object(self, request: Request) -> Response:
        labels, number = self._find_labels(request), request.path_params["object"]
        return await self._answer(request, lambda: _to_json(describe_object(labels, number)))

    async def find_object_at(self, request: Request) -> Response:
        labels, y, x = self._find_labels(request), request.path_params["y"], request.path_params["x"]
        return await self._answer(
            request, lambda: _to_json(describe_object(labels, find_object(labels.levels, y, x), (y, x)))
        )

    def _find_labels(self, request: Request) -> ViewedLabels:
        labels = self._viewed.labels.get(request.path_params["label"])
        if labels is None:
            raise HTTPException(404)
        if labels.is_replaced:
            raise HTTPException(409, "The result was written again: end slidesam view and start it again")
        return labels

    def _draw_map_anew(self, labels: ViewedLabels, hidden: frozenset[str]) -> SmoothMap | None:
        summary, slide = labels.summary, self._viewed.slide
        return None if summary is None else draw_smooth_density(summary, slide.shape, slide.mpp, hidden)

    async def _answer(self, request: Request, make: Callable[[], Response]) -> Response:
        """Answer from a thread; what is damaged becomes a plain sentence, and the rest works."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        async with self._limiter:
            # Whoever moved on needs no tile any more.
            if await request.is_disconnected():
                return Response(status_code=204)
            try:
                return await anyio.to_thread.run_sync(make)
            except IndexError as error:
                raise HTTPException(404, str(error)) from error
            except (SlidesamError, OSError) as error:
                message = in_one_line(error)
                if message not in self._reported:
                    self._reported.add(message)
                    self._report(message)
                return Response(message, 500, media_type="text/plain")


def _parse_channels(text: str, viewed: ViewedResult) -> list[ShownChannel]:
    """Read which channels are wanted: `number.colour.low.high`, separated by commas; those shown at first, if it is empty."""
    if not text or viewed.slide.is_rgb:
        return [viewed.channels[number] for number in viewed.shown]
    channels = []
    try:
        for part in text.split(","):
            number, colour, *ends = part.split("_")
            red, green, blue = bytes.fromhex(colour)
            low, high = map(float, ends)
            if not (number.isdecimal() and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(part)
            channels.append(ShownChannel(viewed.channels[int(number)].number, (red, green, blue), (low, high)))
    except (ValueError, IndexError) as error:
        raise HTTPException(400, "channels are written as number_colour_low_high") from error
    if len(channels) > _MOST_CHANNELS:
        raise HTTPException(400, f"at most {_MOST_CHANNELS} channels can be shown together")
    return channels


def _parse_hidden(request: Request) -> frozenset[str]:
    return frozenset(request.query_params.getlist("hide"))


def _to_jpeg(pixels: np.ndarray[Any, Any]) -> Response:
    buffer = io.BytesIO()
    # Colours of a single pixel count here: they aren't halved.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _to_png(picture: Image.Image, **options: Any) -> Response:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, **options)
    return Response(buffer.getvalue(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _to_json(content: Any) -> Response:
    text = json.dumps(content, allow_nan=False, default=str)
    return Response(text, media_type="application/json", headers={"cache-control": "no-store"})
