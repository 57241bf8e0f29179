"""Own the description of a run (slide × label), and the fingerprints of its stages."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slidesam.tasks.errors import OutputError, in_one_line
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.plan import ImagePlan, group_blocks, plan_image
from slidesam.tasks.pixels.resample import Scale, best_level, make_grids, make_scale
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.stage_folders import ImageFolder, PaintFolder, SegmentFolder, StitchFolder
from slidesam.tasks.segmenters.packages import read_versions
from slidesam.tasks.segmenters.votes import has_classes
from slidesam.tasks.settings.methods import SegmenterSettings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import Slide

# Increased when what is read or the meaning of files changes, so that a new version never takes an old one's results for its own.
_WORK_FORMAT = 5


class Run(BaseModel):
    """One slide × one label, with all that a worker needs: paths, settings, facts. Small and frozen.

    Attributes:
        slide: Facts on the slide.
        output: The output folder, absolute.
        settings: What to compute.
        segmenter_identity: What pixels depend on beside settings (hash of weights or source).
        tissue_identity: Hash of the mask image that says where tissue is, if the settings name one.
        region_identity: Hash of the regions of interest, if the settings name some.
        permitted: Code that the segmenter may load, as `segmenters.allowed` decided when the run was planned. In no file, so
            that nobody can write it into one.
    """

    model_config = ConfigDict(frozen=True)

    slide: Slide
    output: Path
    settings: Settings
    segmenter_identity: str
    tissue_identity: str | None = None
    region_identity: str | None = None
    permitted: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, record: Provenance, output: Path) -> Run:
        """Return the run that a record in this output folder tells of.

        Raises:
            OutputError: This version can't read its settings.
        """
        try:
            settings = Settings.model_validate(record.settings)
        except ValidationError as error:
            what = (
                f"{record.slide.name} ({record.label}) has settings that this version can't read ({in_one_line(error)})"
            )
            raise OutputError(what, "segment the slide again") from error
        identity = record.segmenter.identity
        return cls(slide=record.slide, output=output.resolve(), settings=settings, segmenter_identity=identity)

    @property
    def name(self) -> str:
        """The slide's name, with which the names of all outputs begin."""
        return self.slide.name

    @property
    def label(self) -> str:
        """Name of the label image."""
        return self.settings.output.label

    @cached_property
    def paths(self) -> RunPaths:
        """Where its files lie."""
        return RunPaths(self.output, self.name, self.label)

    @property
    def store(self) -> Path:
        """The OME-Zarr with image and labels."""
        return self.paths.store

    @cached_property
    def scale(self) -> Scale:
        """How many pixels of level 0 one segmented pixel takes.

        Raises:
            SettingsError: The wanted pixel size can't be had.
        """
        return make_scale(self.slide.mpp, self.settings.slide.target_mpp, self.settings.blocks.sizes[0])

    @cached_property
    def grid(self) -> BlockGrid:
        """The blocks on level 0."""
        return make_grids(self.slide.shape, self.scale, self.settings.blocks.sizes[1])[0]

    @cached_property
    def group_shape(self) -> tuple[int, int]:
        """Height and width of a group of blocks, in pixels of level 0: a shard of the label image."""
        rows, columns = group_blocks(self.grid.block_shape)
        return rows * self.grid.block_shape[0], columns * self.grid.block_shape[1]

    @cached_property
    def segmented_grid(self) -> BlockGrid:
        """The same blocks, in segmented pixels."""
        return make_grids(self.slide.shape, self.scale, self.settings.blocks.sizes[1])[1]

    @cached_property
    def segmented_slide(self) -> Slide:
        """Facts on the slide for its segmenter: the pixel size is that of segmented pixels."""
        mpp = None if self.slide.mpp is None else self.scale.mpp(self.slide.mpp)
        return self.slide if self.scale.is_one else self.slide.model_copy(update={"mpp": mpp})

    @cached_property
    def segmented_level(self) -> int:
        """The level from which blocks are read: of the store if the slide is converted, else of the slide."""
        plan = self.image_plan
        if plan.mode == "rechunk":
            return 0
        # A level that can't stand for level 0 counts as coarser than any pixel.
        source_factors = [level.downsample if level.is_faithful else (math.inf,) * 2 for level in self.slide.levels]
        pyramid_factors = [(2.0**level, 2.0**level) for level in range(len(plan.levels))]
        return best_level(pyramid_factors if plan.mode == "convert" else source_factors, self.scale)

    @cached_property
    def image_plan(self) -> ImagePlan:
        """How the pixels reach the blocks."""
        return plan_image(self.slide, self.settings.image, self.grid)

    @property
    def pages(self) -> dict[str, Any]:
        """What the settings say that pages mean, where that isn't what slidesam has always taken them for."""
        return {"slide.pages": "channels"} if self.slide.pages == "channels" else {}

    @property
    def reading(self) -> dict[str, Any]:
        """What decides the pixels of a slide's plane: how this version reads it, its colours, and from which levels.

        Colours decide the background, and coarse pixels aren't made from levels that take single pixels.
        """
        unused_levels = list(self.slide.unused_levels)
        levels = {"levels that aren't used": unused_levels} if unused_levels else {}
        return levels | {
            "format of the work": _WORK_FORMAT,
            # Of the plan, not of this machine: workers must name the same folders.
            "version of imagecodecs": read_versions(self.segmenter_identity).get("imagecodecs"),
            "red, green and blue": self.slide.is_rgb,
        }

    @cached_property
    def causes(self) -> dict[str, dict[str, Any]]:
        """The inputs of each stage's cache key (image, segment, stitch, export), by name: all that its result depends on."""
        slide, settings, plan = self.slide, self.settings, self.image_plan
        source = {
            "format of the work": _WORK_FORMAT,
            "slide": slide.identity.model_dump(mode="json"),
            **{f"slide.{key}": getattr(slide, key) for key in ("series", "t", "z")},
        }
        source |= self.pages
        if slide.unused_levels:
            source["levels that aren't used"] = slide.unused_levels
        arrays = {f"image.{key}": getattr(settings.image, key) for key in ("ome_zarr", "chunk_shape", "codec")}
        image = source | self.reading | arrays | {"mode": plan.mode, "channels": plan.channels, "shard": plan.shard}
        # How the pixels reach the blocks isn't among them: the pixels are the same, so another way costs no segmenting.
        segment = source | {
            "slide.mpp": slide.mpp,
            "slide.channels": slide.channels,
            "red, green and blue": slide.is_rgb,
            "blocks.block_shape": settings.blocks.block_shape,
            "blocks.halo": settings.blocks.halo,
            "blocks.tissue": self.tissue_identity or settings.blocks.tissue,
            **{f"segmenter.{key}": value for key, value in _list_segmenter_causes(settings.segmenter).items()},
            "the segmenter's weights, code or versions": self.segmenter_identity,
        }
        if not self.scale.is_one:
            # Coarser levels of a slide and of the store are made in different ways.
            level = (plan.mode, self.segmented_level) if self.segmented_level else 0
            segment |= {"slide.target_mpp": self.scale, "the level that is read": level}
        stitch = {"segment": _digest(segment)} | {f"stitch.{key}": value for key, value in settings.stitch}
        # Not of the blocks themselves: other regions, or the whole slide, use what is there.
        if self.region_identity is not None:
            stitch["blocks.region"] = self.region_identity
        export = arrays | {"stitch": _digest(stitch), "output.label": settings.output.label}
        if has_classes(settings.segmenter):
            export["segmenter.class_names"] = settings.segmenter.class_names
        return {"image": image, "segment": segment, "stitch": stitch, "export": export}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Per stage the hash of its causes, twelve hexadecimal digits each."""
        return {stage: _digest(causes) for stage, causes in self.causes.items()}

    @property
    def image_folder(self) -> ImageFolder:
        """Marks of the tiles that are converted or rechunked; with the pixels, if only rechunked."""
        mode = self.image_plan.mode.replace(" ", "-")
        return ImageFolder(self.paths.image.work / f"{mode}-{self.fingerprints['image']}")

    @property
    def segment_folder(self) -> SegmentFolder:
        """Results of the blocks."""
        return SegmentFolder(self.paths.work / f"segment-{self.fingerprints['segment']}")

    @property
    def stitch_folder(self) -> StitchFolder:
        """Matches and the relabelling."""
        return StitchFolder(self.paths.work / f"stitch-{self.fingerprints['stitch']}")

    @property
    def paint_folder(self) -> PaintFolder:
        """Done-marks and measurements of what was painted into the label image."""
        return PaintFolder(self.paths.work / f"paint-{self.fingerprints['export']}")


def _list_segmenter_causes(segmenter: SegmenterSettings) -> dict[str, Any]:
    """List the settings that a block's result depends on; those of classes only where it has any."""
    unused = set() if has_classes(segmenter) else {"classes", "class_file"}
    return segmenter.model_dump(mode="json", exclude={"trust", "class_trust", "class_names", *unused})


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def batches(block_ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Split block ids into batches of at most `size`."""
    return (tuple(block_ids[start : start + size]) for start in range(0, len(block_ids), size))
