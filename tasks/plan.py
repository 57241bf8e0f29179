"""Plan a slide's run before anything is computed, and explain the plan."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.pixels.mask_image import mask_identity
from slidesam.tasks.pixels.resample import make_grids, make_scale
from slidesam.tasks.run.files import make_folder, read_json
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.links import find_link
from slidesam.tasks.run.marks import Marks, find_damaged, list_blocks
from slidesam.tasks.run.records import Params, Resolved
from slidesam.tasks.run.regions import list_region_blocks, resolve_region
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.stage_folders import StageFolder
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.segmenters.allowed import find_code, permit
from slidesam.tasks.segmenters.microsam.inputs import check_inputs
from slidesam.tasks.segmenters.microsam.sizes import explain_sizes, suggest_blocks, with_tiles
from slidesam.tasks.segmenters.microsam.weights import choose_model
from slidesam.tasks.segmenters.packages import describe_differences
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.sections import BlockSettings, Settings
from slidesam.tasks.slides.decimation import mark_decimated
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.store import convert


def plan_run(slide: Path, output: Path, settings: Settings, allowed: Collection[str] = ()) -> Run:
    """Plan a run from the slide's metadata, and a few pixels of its coarser levels.

    Args:
        slide: The slide file or OME-Zarr folder.
        output: The output folder; made if it isn't there.
        settings: What to compute.
        allowed: Code that the person allows the segmenter to load; see `segmenters.allowed`.

    Raises:
        SlideError: The slide can't be read.
        SettingsError: A setting doesn't suit the slide.
        SegmenterError: The segmenter's weights or function aren't there, or aren't allowed.
        OutputError: The output folder can't be written.
    """
    permit(settings.segmenter, allowed)
    run = describe_run(mark_decimated(inspect_slide(slide, settings.slide)), output, settings, allowed)
    prepare_output(run.output, run.paths)
    return run


def describe_run(facts: Slide, output: Path, settings: Settings, allowed: Collection[str] = ()) -> Run:
    """Describe a run on a slide that was inspected; write nothing.

    Args:
        facts: The slide.
        output: The output folder.
        settings: What to compute.
        allowed: Code that the person allows the segmenter to load.

    Raises:
        SettingsError: A setting doesn't suit the slide.
        SegmenterError: The segmenter's weights or function aren't there, or aren't allowed.
    """
    permitted = permit(settings.segmenter, allowed)
    _check_installed(settings)
    run = describe_unpermitted(facts, output, settings)
    identity = segmenter_identity(run.settings.segmenter, facts.is_rgb, permitted)
    return run.model_copy(update={"segmenter_identity": identity, "permitted": permitted})


def describe_unpermitted(facts: Slide, output: Path, settings: Settings) -> Run:
    """Describe a run whose segmenter isn't known and may load no code, to look at its blocks.

    Raises:
        SettingsError: A setting doesn't suit the slide.
        SegmenterError: The segmenter is to see channels that the slide doesn't have.
    """
    settings, mask = _with_mask(settings)
    settings, regions = resolve_region(facts, settings)
    return Run(
        slide=facts,
        output=output.resolve(),
        settings=resolve_sizes(facts, settings),
        segmenter_identity="",
        tissue_identity=mask,
        region_identity=regions,
    )


def _check_installed(settings: Settings) -> None:
    """Refuse formats that can't be written here, before anything is computed."""
    if "spatialdata" in settings.output.formats and settings.image.ome_zarr != "0.5":
        raise SettingsError(
            f"output.formats: spatialdata links the arrays of OME-Zarr 0.5, and image.ome_zarr is {settings.image.ome_zarr}",
            "leave one of the two out",
        )
    if "anndata" in settings.output.formats and importlib.util.find_spec("h5py") is None:
        raise SettingsError(
            "output.formats: anndata needs h5py, which isn't installed",
            'pip install "slidesam[anndata]", or leave the format out',
        )


def resolve_sizes(slide: Slide, settings: Settings) -> Settings:
    """Replace sizes that depend on others by numbers.

    Raises:
        SettingsError: They can't be had on this slide.
        SegmenterError: The segmenter is to see channels that the slide doesn't have.
    """
    settings = settings.model_copy(update={"blocks": _with_sizes(settings, is_rgb=slide.is_rgb)})
    block_shape, halo = settings.blocks.sizes
    scale = make_scale(slide.mpp, settings.slide.target_mpp, block_shape)
    _, scaled_grid = make_grids(slide.shape, scale, halo)
    if not isinstance(settings.segmenter, MicroSam):
        return settings
    check_inputs(settings.segmenter, slide)
    model = choose_model(settings.segmenter, slide.is_rgb)
    tiled = with_tiles(settings.segmenter, model, scaled_grid.outer_shape)
    return settings.model_copy(update={"segmenter": tiled})


def _with_sizes(settings: Settings, *, is_rgb: bool) -> BlockSettings:
    """Replace `auto` by numbers, for micro-sam such that blocks are whole tiles."""
    blocks, segmenter = settings.blocks, settings.segmenter
    shape, halo = blocks.sizes
    if isinstance(segmenter, MicroSam):
        tile_shape, tile_halo = suggest_blocks(segmenter, choose_model(segmenter, is_rgb), blocks.sizes)
        shape = tile_shape if blocks.block_shape is None else shape
        halo = tile_halo if blocks.halo is None else halo
    return blocks.model_copy(update={"block_shape": shape, "halo": halo})


def _with_mask(settings: Settings) -> tuple[Settings, str | None]:
    """Make the path of the mask image absolute, if the settings name one; return its hash, too."""
    if settings.blocks.tissue in ("auto", "off"):
        return settings, None
    path = Path(settings.blocks.tissue).expanduser().resolve()
    blocks = settings.blocks.model_copy(update={"tissue": str(path)})
    return settings.model_copy(update={"blocks": blocks}), mask_identity(path)


def prepare_output(output: Path, run: RunPaths | None = None) -> None:
    """Make the output folder, and check that it can be written.

    Args:
        output: The output folder.
        run: The run that writes there; None = whichever.

    Raises:
        OutputError: It can't be made or written, or a link in it leads elsewhere.
    """
    try:
        make_folder(output)
    except OSError as error:
        raise OutputError(
            f"output folder {output} can't be made ({os.strerror(error.errno or 0)}): choose another"
        ) from error
    if not os.access(output, os.W_OK):
        raise OutputError(f"output folder {output} can't be written: choose another, or mend its permissions")
    if (link := find_link(output, run)) is not None:
        raise OutputError(
            f"{link} is a link to {link.readlink()}, where files would be overwritten or removed: remove the link, or make "
            "the whole output folder a link"
        )


def explain(run: Run) -> list[str]:
    """Say what the segmenter sees, and in a line per stage what is reused and what is done again, and why."""
    return [
        *_explain_segmenter(run),
        *_explain_levels(run.slide),
        _explain_image(run),
        *_explain_regions(run),
        _explain_segmenting(run),
        _explain_stitching(run),
        *_explain_damage(run),
    ]


def _explain_levels(slide: Slide) -> list[str]:
    """Say which levels of the slide are decimated; nothing where none is."""
    decimated = [str(number) for number, level in enumerate(slide.levels) if not level.is_averaged]
    if not decimated:
        return []
    return [f"image: coarse levels ({', '.join(decimated)}) take single pixels, no averages: they aren't used"]


def _explain_segmenter(run: Run) -> list[str]:
    """Say which model sees which sizes, with warnings; nothing where there is no choice."""
    lines = []
    if not run.scale.is_one and run.segmented_slide.mpp is not None:
        y, x = run.segmented_slide.mpp
        level = f", read from level {run.segmented_level}" if run.segmented_level else ""
        lines.append(f"segment: at {x:.4g} × {y:.4g} µm{level}")
    if isinstance(run.settings.segmenter, MicroSam):
        model = choose_model(run.settings.segmenter, run.slide.is_rgb)
        grid, mpp = run.segmented_grid, run.segmented_slide.mpp
        shape = grid.block_shape if len(grid) > 1 else None
        sight, warnings = explain_sizes(run.settings.segmenter, model, grid.outer_shape, mpp, shape)
        weights = run.segmenter_identity.partition(" ")[0]
        lines.append(
            "; ".join([f"segment: {weights} of micro-sam", sight]) + "".join(f" ({each})" for each in warnings)
        )
        lines += [
            f"segment: {code} is unpickled if it holds more than weights (segmenter.{setting}): its maker is trusted"
            for setting, code in find_code(run.settings.segmenter).items()
        ]
    return lines


def _explain_image(run: Run) -> str:
    plan = run.image_plan
    if convert.is_ready(run):
        ready = {"convert": "converted before", "rechunk": "rechunked before", "in place": plan.reason}
        return f"image: nothing to do ({ready[plan.mode]})"
    if plan.mode == "in place":
        return f"image: writes an overview, leaves the pixels where they are ({plan.reason})"
    verb = {"convert": "converts", "rechunk": "rechunks"}[plan.mode]
    n_done, n_tiles = len(Marks(run.image_folder).names()), sum(len(plan.grid(n)) for n in convert.tiled_levels(run))
    if n_done:
        return f"image: goes on where it stopped, {n_done} of {n_tiles} tiles are there"
    reason = _explain_change(run.paths.image, plan.mode, run.causes["image"]) or plan.reason
    return f"image: {verb} {n_tiles} tile{'' if n_tiles == 1 else 's'} ({reason})"


def _explain_regions(run: Run) -> list[str]:
    """Say how many blocks see the regions of interest; nothing where the whole slide is computed."""
    blocks = list_region_blocks(run)
    if blocks is None:
        return []
    return [
        f"segment: only the {len(blocks)} of {len(run.grid)} blocks that see a region of {run.settings.blocks.region}"
    ]


def _explain_segmenting(run: Run) -> str:
    params = Params.read(run.segment_folder.params)
    if params is None:
        difference = _explain_change(run.paths, "segment", run.causes["segment"])
        return f"segment: {'anew' if difference else 'from the start'} ({difference or 'nothing is there yet'})"
    block_ids = list_blocks(run)
    n_done = len(run.segment_folder.list_results().intersection(block_ids))
    return f"segment: {n_done} of {len(block_ids)} blocks are there (same slide, blocks and segmenter)"


def _explain_stitching(run: Run) -> str:
    if Resolved.read(run.stitch_folder.resolved) is not None:
        return "stitch: objects are numbered already (same blocks and settings)"
    difference = _explain_change(run.paths, "stitch", run.causes["stitch"])
    return f"stitch: {'anew' if difference else 'from the start'} ({difference or 'nothing is there yet'})"


def _explain_damage(run: Run) -> list[str]:
    """Say which small files of the stages are damaged."""
    damaged = find_damaged(run)
    more = [f"{len(damaged) - 3} files more are damaged, too"] if len(damaged) > 3 else []
    return [*(f"{path} is damaged: what it held is made again" for path in damaged[:3]), *more]


def _explain_change(paths: RunPaths, stage: str, causes: dict[str, Any]) -> str | None:
    """Say what differs from the last time that this stage was started; None if there was none."""
    files = [path for folder in paths.stage_folders(stage) if (path := StageFolder(folder).causes).is_file()]
    if not files:
        return None
    old_causes = read_json(max(files, key=lambda path: path.stat().st_mtime)) or {}
    new_causes = json.loads(json.dumps(causes, default=str))
    differing = [name for name in new_causes if old_causes.get(name) != new_causes[name]]
    return "; ".join(_word_difference(name, old_causes.get(name), new_causes[name]) for name in differing[:3]) or None


def _word_difference(name: str, old_value: object, new_value: object) -> str:
    """Say how one setting changed; of hashes and long values, only that they did."""
    if name == "the segmenter's weights, code or versions" and isinstance(old_value, str):
        return describe_differences(old_value, str(new_value))
    if name == "segment":
        return "the blocks' labels are others"
    if name in ("slide", "stitch") or "weights" in name or max(len(str(old_value)), len(str(new_value))) > 60:
        return f"{name} changed"
    return (
        f"{name} is {new_value}, and wasn't noted" if old_value is None else f"{name} was {old_value}, is {new_value}"
    )
