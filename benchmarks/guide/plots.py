"""Draws the measurements from their JSON: grouped bars with their values, and a caption that says where they are from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.guide.about import caption
from benchmarks.guide.report import Row, percent

# Of methods; slidesam's deepen with the number of workers or the size of tiles.
_GREY, _ORANGE = "#8a8f98", "#e08a3c"
_BLUES = ("#a9cbe8", "#6ba3d6", "#2f74b5", "#143f6b", "#0a2038")
_STAGES = {
    "read": "#cfd4da", "rest": "#a7adb5", "encoder": "#2f74b5", "decoder": "#7fb3dd", "post-processing": "#e08a3c",
    "write": "#5d636b",
}  # fmt: skip
_DPI = 150
_CAPTION_WIDTH = 165
_LINE = 0.17  # inches that a line of the caption takes
SEQUENTIAL, GUIDE, OURS = "micro-sam alone", "the guide's way", "slidesam"
Bars = Mapping[str, tuple[Sequence[float | None], str]]


def draw(path: Path, folder: Path | None = None) -> list[Path]:
    """Draws the figures of a JSON file that `Report` wrote.

    Args:
        path: The file.
        folder: Where to; by default beside it.

    Returns:
        The pictures' paths.
    """
    content = json.loads(path.read_text())
    folder = path.parent if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    return _PARTS[content["part"]](content["rows"], content["about"], folder)


# ------------------------------------------------------------------------------------------------------------ figures 1 to 4


def _figures(rows: list[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    return [
        _first_time(rows, about, folder / "figure-1-time-per-tile.png"),
        _first_count(rows, about, folder / "figure-2-objects-per-tile.png"),
        _second_time(rows, about, folder / "figure-3-time-per-chunk.png"),
        _second_count(rows, about, folder / "figure-4-objects-per-chunk.png"),
    ]


def _first_time(rows: list[Row], about: dict[str, Any], path: Path) -> Path:
    figure, (left, right) = _sheet(1, 2, about)
    tiles = _tiles(rows)
    for axes, key, title in (
        (left, "segment", "segmenting, model loaded"),
        (right, "whole", "from start to end, all included"),
    ):
        grouped(axes, [f"{tile}" for tile in tiles], _per_tile(rows, about, tiles, key), seconds, is_log=True)
        axes.set_title(title, fontsize=10.5)
        axes.set(xlabel="tile shape, px a side", ylabel="seconds (log scale)")
    _legend(left, figure)
    return _save(figure, about, path, f"Figure 1: elapsed time per tile shape, chunk {about['chunk']} px")


def _first_count(rows: list[Row], about: dict[str, Any], path: Path) -> Path:
    figure, (axes,) = _sheet(1, 1, about)
    tiles = _tiles(rows)
    grouped(axes, [f"{tile}" for tile in tiles], _per_tile(rows, about, tiles, "objects"), "{:,.0f}".format)
    axes.set(xlabel="tile shape, px a side", ylabel="objects")
    _legend(axes)
    return _save(figure, about, path, f"Figure 2: objects per tile shape, chunk {about['chunk']} px")


def _per_tile(rows: list[Row], about: dict[str, Any], tiles: Sequence[int], key: str) -> Bars:
    """micro-sam's bars and slidesam's for each number of workers."""
    bars = {SEQUENTIAL: ([_value(rows, key, method=SEQUENTIAL, tile=tile) for tile in tiles], _GREY)}
    threads = {row["workers"]: row["threads"] for row in rows if row["method"] == OURS}
    for number, workers in enumerate(sorted(set(about["workers"]) & set(threads))):
        found = [_value(rows, key, method=OURS, tile=tile, chunk=about["chunk"], workers=workers) for tile in tiles]
        name = (
            f"slidesam, {workers} worker{'s' * (workers > 1)} × {threads[workers]} thread{'s' * (threads[workers] > 1)}"
        )
        bars[name] = (found, _BLUES[min(number, len(_BLUES) - 1)])
    return bars


def _second_time(rows: list[Row], about: dict[str, Any], path: Path) -> Path:
    figure, (axes,) = _sheet(1, 1, about)
    chunks, tiles = about["chunks"], _tiles(rows)
    bars = {
        f"tile {tile}": (
            [_value(rows, "segment", method=OURS, tile=tile, chunk=chunk, workers=about["most"]) for chunk in chunks],
            _BLUES[min(number, len(_BLUES) - 1)],
        )
        for number, tile in enumerate(tiles)
    }
    grouped(axes, [f"{chunk}" for chunk in chunks], bars, seconds, is_log=True)
    axes.set(xlabel="chunk (block) size, px a side", ylabel="seconds of segmenting (log scale)")
    _legend(axes)
    return _save(figure, about, path, f"Figure 3: elapsed time per chunk size, slidesam, {about['most']} workers")


def _second_count(rows: list[Row], about: dict[str, Any], path: Path) -> Path:
    tiles = _tiles(rows)
    figure, panels = _sheet(1, len(tiles), about)
    for axes, tile in zip(panels, tiles, strict=True):
        chunks = [chunk for chunk in about["chunks"] if chunk >= tile]
        alone = _value(rows, "objects", method=SEQUENTIAL, tile=tile)
        guide = [
            alone if chunk >= max(about["shape"]) else _value(rows, "objects", method=GUIDE, tile=tile, chunk=chunk)
            for chunk in chunks
        ]
        ours = [_value(rows, "objects", method=OURS, tile=tile, chunk=chunk, workers=about["most"]) for chunk in chunks]
        bars = {"the guide's way: no overlap, no merging": (guide, _ORANGE), "slidesam": (ours, _BLUES[2])}
        grouped(axes, [f"{chunk}" for chunk in chunks], bars, "{:,.0f}".format, is_narrow=True)
        if alone is not None:
            axes.axhline(alone, color=_GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="micro-sam, whole image")
        axes.set_title(f"tile {tile} px", fontsize=10.5)
        axes.set_xlabel("chunk (block) size, px a side", fontsize=9.5)
    panels[0].set_ylabel("objects")
    _legend(panels[0], figure)
    return _save(figure, about, path, "Figure 4: objects per chunk size")


# ------------------------------------------------------------------------------------------------------------ other parts


def _seams(rows: list[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    figure, (axes,) = _sheet(1, 1, about)
    rows = sorted(rows, key=lambda row: row["chunk"])
    bars = {
        "the guide's way: no overlap, no merging": ([percent(row["guide"], row["whole"]) for row in rows], _ORANGE),
        "slidesam: overlap, stitched": ([percent(row["ours"], row["one_block"]) for row in rows], _BLUES[2]),
    }
    grouped(axes, [f"{row['chunk']}" for row in rows], bars, "{:+.2f} %".format)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set(xlabel="chunk (block) size, px a side", ylabel="objects beyond those of the image in one piece, %")
    _legend(axes)
    return [_save(figure, about, folder / "seams.png", "False objects at chunk edges, watershed")]


def _memory(rows: list[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    figure, (axes,) = _sheet(1, 1, about)
    sizes = sorted({(row["blocks"], *row["shape"]) for row in rows})
    bars = {}
    for method, name, colour in (
        (SEQUENTIAL, "micro-sam alone, whole image", _GREY),
        (OURS, f"slidesam, the worker that took most ({about['workers']})", _BLUES[2]),
    ):
        found = [_value(rows, "peak", method=method, blocks=size[0]) for size in sizes]
        bars[name] = ([None if mib is None else mib / 1024 for mib in found], colour)
    grouped(
        axes, [f"{width} × {height}\n({_blocks(length)})" for length, height, width in sizes], bars, "{:.2f}".format
    )
    axes.set(xlabel="image, px", ylabel="peak memory, GiB")
    _legend(axes)
    title = f"Peak memory, blocks of {about['block']} px, tiles of {about['tile']} px"
    return [_save(figure, about, folder / "memory.png", title)]


def _blocks(number: int) -> str:
    return f"{number} block{'s' * (number > 1)}"


def _profile(rows: list[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    figure, (left, right) = _sheet(1, 2, about)
    modes = [row["mode"] for row in rows if row["kind"] == "stages"]
    _stacked(left, [row for row in rows if row["kind"] == "stages"])
    runs = [row for row in rows if row["kind"] in ("sequential", "workers")]
    counts = sorted({row["workers"] for row in runs if row["kind"] == "workers"})
    bars: dict[str, tuple[Sequence[float | None], str]] = {
        SEQUENTIAL: ([_value(runs, "seconds_per_tile", kind="sequential", mode=mode) for mode in modes], _GREY)
    }
    for number, workers in enumerate(counts):
        found = [_value(runs, "seconds_per_tile", kind="workers", mode=mode, workers=workers) for mode in modes]
        bars[f"slidesam, {workers} worker{'s' * (workers > 1)}"] = (found, _BLUES[min(number, len(_BLUES) - 1)])
    grouped(right, [mode.upper() for mode in modes], bars, seconds, is_log=True)
    right.set_title("on one device", fontsize=10.5)
    right.set(ylabel="seconds per 1024 px tile (log scale)")
    _legend(right)
    return [_save(figure, about, folder / "profile.png", "Where the time of a 1024 px tile goes")]


def _stacked(axes: Axes, rows: list[Row]) -> None:
    """A bar per mode, its parts one above the other, in per cent of the tile's time."""
    for index, row in enumerate(rows):
        total, below = sum(row["seconds"].values()), 0.0
        for stage, colour in _STAGES.items():
            share = 100 * row["seconds"].get(stage, 0.0) / total
            axes.bar(index, share, 0.8, bottom=below, color=colour, label=stage if index == 0 else None)
            if share > 4:
                ink = "white" if stage in ("encoder", "write") else "#1c1c1c"
                words = f"{stage} {share:.0f} %, {seconds(row['seconds'][stage])} s"
                axes.text(index, below + share / 2, words, ha="center", va="center", fontsize=7, color=ink)
            below += share
    axes.set_xticks(
        range(len(rows)), [f"{row['mode'].upper()}\n{seconds(sum(row['seconds'].values()))} s" for row in rows]
    )
    axes.set_title("one worker", fontsize=10.5)
    axes.set(ylabel="share of a tile's time, %", xlim=(-0.6, len(rows) - 0.4))
    _plain(axes)
    _legend(axes)


_PARTS: dict[str, Callable[[list[Row], dict[str, Any], Path], list[Path]]] = {
    "figures": _figures,
    "seams": _seams,
    "memory": _memory,
    "profile": _profile,
}


# ---------------------------------------------------------------------------------------------------------------- drawing


def seconds(value: float) -> str:
    """Seconds with three digits that count.

    Example:
        >>> seconds(0.01234), seconds(3.14159), seconds(1234.5)
        ('0.0123', '3.14', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def grouped(
    axes: Axes,
    groups: Sequence[str],
    bars: Bars,
    words: Callable[[float], str],
    is_log: bool = False,
    is_narrow: bool = False,
) -> None:
    """Bars side by side for each group, their values above them.

    Args:
        axes: Where to.
        groups: Names of the groups.
        bars: Per name the value in each group (None = no bar) and a colour.
        words: How a value is written.
        is_log: Whether the y axis is logarithmic.
        is_narrow: Whether values stand upright, since there is no room.
    """
    width = min(0.84 / len(bars), 0.3)
    size = 8 if len(bars) * len(groups) <= 12 else 6.5
    values = [value for found, _ in bars.values() for value in found if value is not None]
    if is_log:
        axes.set_yscale("log")
    for number, (name, (found, colour)) in enumerate(bars.items()):
        places = [index + (number - (len(bars) - 1) / 2) * width for index in range(len(groups))]
        there = [(place, value) for place, value in zip(places, found, strict=True) if value is not None]
        drawn = axes.bar(
            [place for place, _ in there], [value for _, value in there], width * 0.92, color=colour, label=name
        )
        axes.bar_label(drawn, [words(value) for _, value in there], fontsize=size, padding=2, rotation=90 * is_narrow)
    axes.set_xticks(range(len(groups)), groups)
    if values and is_log:
        positive = [value for value in values if value > 0]
        axes.set_ylim(min(positive) / 2, max(positive) * 1.6)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values:
        low, high = min(0.0, *values), max(0.0, *values)
        room = (0.2 if is_narrow else 0.08) * ((high - low) or 1.0)
        axes.set_ylim(low - room * (low < 0), high + room)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.xaxis.label.set_size(9.5)
    axes.yaxis.label.set_size(9.5)


def _legend(axes: Axes, figure: Figure | None = None) -> None:
    """Names of bars, below the axes; or, where panels share them, above all."""
    handles, names = axes.get_legend_handles_labels()
    if figure is None:
        columns = min(len(names), 4 if axes.get_position().width > 0.6 else 3)
        axes.legend(
            handles, names, fontsize=8, frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
    else:
        top = 1 - 0.36 / figure.get_size_inches()[1]
        figure.legend(
            handles, names, fontsize=8, frameon=False, ncols=len(names), loc="upper left", bbox_to_anchor=(0.01, top)
        )


def _sheet(rows: int, columns: int, about: dict[str, Any]) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels."""
    figure = Figure(figsize=(10, 5 + _LINE * len(_lines(about))), facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    return figure, list(panels)


def _lines(about: dict[str, Any]) -> list[str]:
    return textwrap.wrap(caption(about), _CAPTION_WIDTH)


def _save(figure: Figure, about: dict[str, Any], path: Path, title: str) -> Path:
    """Adds title and caption, and writes the picture."""
    lines = _lines(about)
    height = figure.get_size_inches()[1]
    figure.text(0.015, 1 - 0.12 / height, title, fontsize=12, va="top")
    figure.text(0.015, 0.08 / height, "\n".join(lines), fontsize=7.5, color="#555555", va="bottom", linespacing=1.3)
    above = 0.62 if figure.legends else 0.4
    figure.tight_layout(rect=(0.005, (_LINE * len(lines) + 0.18) / height, 0.995, 1 - above / height))
    figure.savefig(path, dpi=_DPI)
    return path


def _tiles(rows: list[Row]) -> list[int]:
    return sorted({row["tile"] for row in rows})


def _value(rows: list[Row], value: str, **key: Any) -> float | None:
    """A number of the row of a key, if there is one."""
    found = [row for row in rows if all(row.get(name) == wanted for name, wanted in key.items())]
    return found[0][value] if found else None
