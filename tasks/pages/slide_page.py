"""The report on one slide: what was found and where, how sure it is, what it took, and how it was made. One file, no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.pages import block_times, crops, slide_map
from slidesam.tasks.pages.crops import choose_places_to_show, write_crops
from slidesam.tasks.pages.density import choose_side, draw_density, style_ramp
from slidesam.tasks.pages.distribution import describe_values, draw_histogram
from slidesam.tasks.pages.html import (
    encode_picture,
    escape_text,
    list_facts,
    list_notes,
    tabulate,
    write_html,
    write_number,
)
from slidesam.tasks.pages.model_view import write_model_view
from slidesam.tasks.pages.object_values import ObjectValues, Places, find_places, group_areas
from slidesam.tasks.report.overlay import display_channels
from slidesam.tasks.run.records import Provenance, SeamReport
from slidesam.tasks.run.regions import load_regions
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.prepare import read_tissue
from slidesam.tasks.stitch.report import AMONG_OBJECTS, COLUMNS, count_disagreements, locate_seam, rank_seams
from slidesam.tasks.store.arrays import open_level
from slidesam.tasks.store.readers import open_display

# Rows of the table of seams; channels whose intensities are drawn.
_MOST_SEAMS, _MOST_CHANNELS = 8, 6
_SHAPES = {"circularity": "Circularity", "solidity": "Solidity", "eccentricity": "Eccentricity"}
_UM2_PER_MM2 = 1e6
_STYLE = f"""
.note{{background:var(--note);padding:6px 10px;border-radius:4px;margin:6px 0}}
.key{{display:flex;flex-wrap:wrap;gap:10px 34px;margin:14px 0}}.key div{{font-size:13px;color:var(--dim)}}
.key b{{display:block;font-size:21px;font-weight:600;color:var(--ink);font-variant-numeric:tabular-nums}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:6px 20px}}
.chart svg{{width:100%;height:auto;display:block}}.chart text{{font:11px system-ui,sans-serif;fill:var(--dim)}}
.chart .axis path{{stroke:var(--dim);fill:none}}.chart .bars{{fill:var(--bar)}}.chart .band{{fill:var(--band)}}
.chart .median{{stroke:var(--ink);stroke-width:1.5}}
.pair{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px 28px;align-items:start}}
.seen{{max-width:100%}}summary{{cursor:pointer}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;font:12px ui-monospace,monospace}}
.ramp.many{{background:{style_ramp()}}}
body:has(#density:not(:checked)) .density,body:has(#tissue:not(:checked)) .tissue,body:has(#blocks:not(:checked)) .blocks,
body:has(#frames:not(:checked)) .frame,body:has(#outlines:not(:checked)) .outlines{{display:none}}
.layer-choice{{cursor:pointer;margin-right:14px;white-space:nowrap}}
@media print{{.layer-choice{{display:none}}details::details-content{{content-visibility:visible;height:auto}}}}
"""


def make_slide_page(run: Run, values: ObjectValues) -> str:
    """Make the report on a slide.

    Args:
        run: A run that is finished.
        values: Its objects.

    Raises:
        OutputError: The run has no record.
        SlideError: The slide's pixels can't be read.
        DamagedError: What the report is made from is damaged.
    """
    record = Provenance.read(run.paths.provenance)
    if record is None:
        raise OutputError(f"{run.paths.provenance} is gone: run the same command again")
    mpp, channels = run.slide.mpp, display_channels(run.slide)
    thumbnail = slide_map.read_thumbnail(run, channels)
    side = choose_side(run.slide.shape, None if mpp is None else mpp[1])
    places = find_places(values, run.grid, side)
    chosen = choose_places_to_show(places.windows, places.seams, places.disputed)
    with closing(open_display(run, channels)) as reader:
        labels = open_level(run.paths.label_image / "0", run.settings.image.ome_zarr)
        shown = list(write_crops(chosen, reader, labels, thumbnail.windows, run.grid, mpp))
    seams = record.seams or SeamReport()
    body = [
        *_write_top(run, record, values),
        *_write_map(run, record, places, thumbnail, chosen),
        '<h2>At full resolution</h2><p class="dim">Places are chosen by rule, the same each time.</p>',
        _write_choice("outlines", "outlines"),
        f'<div class="crops">{"".join(shown)}</div>',
        *_write_distributions(run, values),
        *_write_groups(run, record, values),
        f"<h2>Seams</h2>{_write_seams(run, seams)}",
        f"<h2>Blocks</h2>{block_times.write_block_times(block_times.read_block_times(run), run.grid, run.slide.shape)}",
        f"<h2>What the model saw</h2>{write_model_view(run, record, chosen[0].region, thumbnail.windows)}",
        *_write_ways_to_open(run),
        *_write_provenance(run, record),
    ]
    style = slide_map.STYLE + crops.STYLE + block_times.STYLE + _STYLE
    return write_html(
        f"{run.name}: {record.objects:,} {run.label}",
        body,
        style + slide_map.style_slide(thumbnail, run.slide.shape),
    )


def find_density(record: Provenance, run: Run) -> float | None:
    """Return how many objects there are per mm² of the blocks that were segmented; None where the pixel size isn't known."""
    area, mpp = _find_segmented_area(record, run), run.slide.mpp
    return None if mpp is None else record.objects / max(area * mpp[0] * mpp[1] / _UM2_PER_MM2, 1e-12)


def _find_segmented_area(record: Provenance, run: Run) -> float:
    """Return the area of the blocks that were segmented, in pixels of level 0."""
    left_out = set(record.blocks_without_tissue)
    regions = (block.inner for block in run.grid if block.block_id not in left_out)
    return float(sum(region.shape[0] * region.shape[1] for region in regions))


def _write_top(run: Run, record: Provenance, values: ObjectValues) -> Iterator[str]:
    height, width = run.slide.shape
    seams = record.seams or SeamReport()
    mpp = run.slide.mpp
    pixel = "pixel size unknown" if mpp is None else f"{mpp[1]:.4g} µm per pixel"
    yield f"<h1>{escape_text(run.name)}: {record.objects:,} {escape_text(run.label)}</h1>"
    yield (
        f'<p class="dim">{width:,} × {height:,} px, {pixel}, {escape_text(run.slide.format)}. '
        f"Segmented by {escape_text(run.settings.segmenter.kind)}, finished {escape_text(record.finished)}.</p>"
    )
    yield list_notes(dict.fromkeys((*run.slide.warnings, *record.warnings, *seams.warnings)))
    keys = {
        escape_text(run.label): f"{record.objects:,}",
        **({} if "region" in values.names else _word_density(run, record)),
    }
    if (areas := describe_values(values.read_whole(_area_name(values)))) is not None:
        first, median, third = map(write_number, areas.quartiles)
        unit = "px²" if mpp is None else "µm²"
        keys[f"median area, {unit}; half lie between {first} and {third}"] = median
    if seams.totals.get("objects"):
        share = 100 * seams.totals["matched"] / seams.totals["objects"]
        keys[f"of {seams.totals['objects']:,} objects at seams blocks agree on"] = f"{share:.3g} %"
    keys["seconds of all workers together"] = write_number(sum(record.task_seconds.values()))
    yield f'<div class="key">{"".join(f"<div><b>{value}</b>{name}</div>" for name, value in keys.items())}</div>'


def _word_density(run: Run, record: Provenance) -> dict[str, str]:
    mpp, density = run.slide.mpp, find_density(record, run)
    if mpp is None or density is None:
        segmented = _find_segmented_area(record, run)
        return {"per million pixels of segmented blocks": write_number(1e6 * record.objects / max(segmented, 1.0))}
    found = {"per mm² of segmented blocks": write_number(density)}
    if run.segment_folder.tissue.exists() and (mask := read_tissue(run)) is not None and mask.pixels.any():
        tissue = min(float(mask.pixels.sum()) * mask.step[0] * mask.step[1], float(np.prod(run.slide.shape)))
        found["per mm² of tissue"] = write_number(record.objects / (tissue * mpp[0] * mpp[1] / _UM2_PER_MM2))
    return found


def _area_name(values: ObjectValues) -> str:
    return "area_um2" if "area_um2" in values.names else "area"


def _write_map(
    run: Run, record: Provenance, places: Places, thumbnail: slide_map.Thumbnail, chosen: list[crops.Crop]
) -> Iterator[str]:
    shape, grid, mpp, density = run.slide.shape, run.grid, run.slide.mpp, places.density
    layers = []
    rows, columns = (size * density.side for size in density.counts.shape)
    drawn = encode_picture(draw_density(density), "PNG", optimize=True)
    layers.append(slide_map.write_layer(drawn, "density", (0, 0, rows, columns), shape))
    names = {"density": "density"}
    if run.segment_folder.tissue.exists() and (mask := read_tissue(run)) is not None:
        height, width = thumbnail.picture.shape[:2]
        y0, x0 = thumbnail.corner
        region = (y0, x0, y0 + height * thumbnail.step[0], x0 + width * thumbnail.step[1])
        layers.append(slide_map.write_layer(slide_map.draw_tissue(mask, thumbnail), "tissue", region, shape))
        names["tissue"] = "tissue"
    names["blocks"] = "blocks"
    if record.blocks_without_tissue:
        colours = np.zeros((len(grid), 4), np.uint8)
        colours[list(record.blocks_without_tissue)] = (128, 128, 128, 130)
        left_out = slide_map.draw_blocks(colours.reshape(*grid.grid_shape, 4))
        layers.append(slide_map.write_layer(left_out, "blocks", slide_map.cover_blocks(grid), shape))
        names["blocks"] = f"blocks, grey where {record.reason_left_out}"
    names["frames"] = "places shown below"
    layers.append(slide_map.write_lines(grid))
    layers += [slide_map.write_frame(at, crop.region, shape) for at, crop in enumerate(chosen, 1)]
    yield "<h2>Where they are</h2>"
    for name, words in names.items():
        yield _write_choice(name, words)
    yield f'<div class="map"><div class="slide"></div>{"".join(layers)}</div>'
    top = float(density.find_densities().max(initial=0))
    unit, factor, pixel = ("per million px", 1e6, "px") if mpp is None else (
        "per mm²", _UM2_PER_MM2 / (mpp[0] * mpp[1]), "µm"
    )  # fmt: skip
    wide = density.side if mpp is None else density.side * mpp[1]
    yield (
        f'<p class="dim"><span class="ramp many"></span> 0 to {write_number(top * factor)} {unit}, in squares of '
        f"{write_number(wide)} {pixel}; clear where there are none.</p>"
    )


def _write_choice(name: str, words: str) -> str:
    return f'<label class="layer-choice"><input type="checkbox" id="{name}" checked> {words}</label>'


def _write_distributions(run: Run, values: ObjectValues) -> Iterator[str]:
    has_um = run.slide.mpp is not None
    length = "axis_major_length_um" if has_um else "axis_major_length"
    wanted = {
        _area_name(values): ("Area", "µm²" if has_um else "px²"),
        length: ("Longer axis", "µm" if has_um else "px"),
    }
    wanted |= {name: (words, "") for name, words in _SHAPES.items()}
    means = [name for name in values.names if name.startswith("intensity_mean-")]
    for name in means[:_MOST_CHANNELS]:
        channel = name.partition("-")[2]
        is_density = run.slide.is_rgb and channel in ("hematoxylin", "eosin")
        wanted[name] = (f"Mean {channel}", "optical density" if is_density else "")
    yield "<h2>How they are</h2>"
    charts = []
    for name, (words, unit) in wanted.items():
        found = describe_values(values.read_whole(name))
        if found is not None:
            charts.append(draw_histogram(found, words, unit))
    more = len(means) - _MOST_CHANNELS
    words = "How many objects have which value; the line is the median, the band holds the middle half."
    words += f" {more} more channels are in the table." if more > 0 else ""
    yield f'<p class="dim">{words}</p><div class="charts">{"".join(charts)}</div>' if charts else "<p>No object.</p>"


def _write_groups(run: Run, record: Provenance, values: ObjectValues) -> Iterator[str]:
    """Write counts per class and per region, where the table has these columns."""
    has_regions = "region" in values.names
    for by, title in ((["region"], "Regions"), (["class"], "Classes"), (["region", "class"], "Classes in regions")):
        if not set(by) <= set(values.names):
            continue
        groups = group_areas(values, by, _area_name(values))
        sizes = _measure_regions(run)
        if not has_regions:
            mpp = run.slide.mpp or (1.0, 1.0)
            sizes = dict.fromkeys(
                (name for (name,) in groups), _find_segmented_area(record, run) * mpp[0] * mpp[1] / 1e6
            )
        rows = [_write_group(name, areas, record, sizes.get(name[0])) for name, areas in groups.items()]
        unit, per = ("px²", "per million px") if run.slide.mpp is None else ("µm²", "per mm²")
        head = (*by, "objects", "share", per, f"median area, {unit}", "quartiles")
        yield f"<h2>{title}</h2>{tabulate(head, rows, left=len(by))}" if rows else ""


def _write_group(
    name: tuple[str, ...], areas: NDArray[np.float64], record: Provenance, size: float | None
) -> tuple[str, ...]:
    """Write a row: `size` is the area in which the objects lie, if that is known."""
    first, median, third = map(write_number, np.percentile(areas, (25, 50, 75)).tolist())
    share = f"{100 * areas.size / max(1, record.objects):.3g} %"
    density = write_number(areas.size / size) if size else ""
    words = (escape_text(word or "none") for word in name)
    return (*words, f"{areas.size:,}", share, density, median, f"{first} to {third}")


def _measure_regions(run: Run) -> dict[str, float]:
    """Return the area of each region of interest in mm², or in millions of pixels where their size isn't known."""
    regions, mpp = load_regions(run), run.slide.mpp or (1.0, 1.0)
    areas = {} if regions is None else regions.measure_areas(run.slide.shape)
    return {name: area * mpp[0] * mpp[1] / _UM2_PER_MM2 for name, area in areas.items()}


def _write_seams(run: Run, seams: SeamReport) -> str:
    if len(run.grid) == 1:
        return "<p>The slide is one block, so it has none.</p>"
    if not seams.totals.get("objects"):
        return "<p>No object lies at a seam.</p>"
    rows = [
        (f"<b>{name.replace('_', '-')}</b>", escape_text(meaning), f"{seams.totals[name]:,}", _share(seams, name))
        for name, meaning in COLUMNS.items()
    ]
    parts = [tabulate(("at seams", "what it means", "objects", "share"), rows, left=2)]
    ranked = [seam for seam in rank_seams(seams) if count_disagreements(seam)]
    if ranked:
        lines = [
            (*locate_seam(run.grid, seam), *(f"{seam[name]:,}" for name in COLUMNS)) for seam in ranked[:_MOST_SEAMS]
        ]
        head = ("block", "and block", "lie", *(name.replace("_", "-") for name in COLUMNS))
        more = f", most at these {_MOST_SEAMS}" if len(ranked) > _MOST_SEAMS else ""
        parts.append(
            f"<p>At {len(ranked):,} of {len(seams.rows):,} seams at which objects lie, blocks disagree or see only "
            f"fragments{more}.</p>{tabulate(head, lines, left=3)}"
        )
    else:
        parts.append(f"<p>Blocks agree at all {len(seams.rows):,} seams at which objects lie.</p>")
    return "".join(parts)


def _share(seams: SeamReport, name: str) -> str:
    return f"{100 * seams.totals[name] / seams.totals['objects']:.3g} %" if name in AMONG_OBJECTS else ""


def _write_ways_to_open(run: Run) -> Iterator[str]:
    """Say how to open what lies beside the report, or will."""
    paths = run.paths
    endings = {"outlines": "objects.geojson.gz", "table": "objects.parquet", "anndata": "objects.h5ad"}
    places = {kind: paths.export(ending) for kind, ending in endings.items()} | {"spatialdata": paths.spatialdata}
    formats = run.settings.output.formats
    files = {kind: escape_text(path.name) for kind, path in places.items() if kind in formats or path.exists()}
    store = f"<code>{escape_text(paths.store.name)}</code>"
    ways = {"in the browser": f"<code>slidesam view {escape_text(paths.store.name)}</code>"}
    if "outlines" in files:
        way = "open the slide itself, then <i>File &gt; Import objects from file</i> and choose"
        ways["QuPath"] = f"{way} <code>{files['outlines']}</code>"
    ways["napari"] = f"<code>pip install napari napari-ome-zarr</code>, then drop {store} on its window"
    if "table" in files:
        ways["pandas"] = f"<code>pandas.read_parquet(&quot;{files['table']}&quot;)</code>"
    if "anndata" in files:
        ways["scanpy"] = f"<code>scanpy.read_h5ad(&quot;{files['anndata']}&quot;)</code>"
    if "spatialdata" in files:
        ways["spatialdata"] = f"<code>spatialdata.read_zarr(&quot;{files['spatialdata']}&quot;)</code>"
    yield f"<h2>Open the results</h2>{list_facts(ways)}"


def _write_provenance(run: Run, record: Provenance) -> Iterator[str]:
    def lines(values: dict[str, object]) -> str:
        return "<br>".join(f"{escape_text(name)}: {escape_text(value)}" for name, value in values.items())

    made = {
        "slide": f"{escape_text(record.slide.path)}",
        "plane": f"image {record.slide.series}, time point {record.slide.t}, focal plane {record.slide.z}",
        "segmenter": escape_text(record.segmenter.identity),
        "devices": escape_text(", ".join(record.segmenter.devices) or "unknown"),
        "threads": escape_text(", ".join(record.segmenter.threads) or "unknown"),
        "pixels": escape_text(f"{record.image.mode}: {record.image.reason}"),
        "seconds of all workers": lines(dict(record.task_seconds)),
        "versions": lines(dict(record.versions)),
        "fingerprints": lines(dict(record.fingerprints)),
        "settings": f"<pre>{escape_text(json.dumps(record.settings, indent=1, ensure_ascii=False))}</pre>",
    }
    yield f"<h2>How it was made</h2><details><summary>settings, versions, fingerprints</summary>{list_facts(made)}</details>"
