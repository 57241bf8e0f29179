"""A run (slide × label) and its folder of intermediate results: what is where, and how one knows that it is whole.

    OUT/.slidesam/.jobs/                  <job>-<number>.log
    OUT/.slidesam/<name>/.image/
        lock.json                         who writes the slide's image
        convert-<fingerprint>/            marks/<level>-<piece>.json
        rechunk-<fingerprint>/            pixels.zarr, marks/<level>-<piece>.json
    OUT/.slidesam/<name>/<label>/
        lock.json                         who runs
        state.json                        what `slidesam status` shows
        segment-<fingerprint>/            params.json, tissue.npz, blocks.zarr, frames/<block_id>.blosc,
                                          objects/<block_id>.npy, marks/<block_id>.json, starts/<block_id>.json
        stitch-<fingerprint>/             overlaps/<group>.npz, resolved.json, relabelling.npy, offsets.npy, sizes.npy
        paint-<fingerprint>/              measures/<group>.npy, marks/<group>.json

Folders carry the fingerprint of their stage, so results made under other settings are never mixed in, and a changed setting
redoes its stage and those after it only. A done-mark is written last, after the result that it vouches for.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.errors import OutputError, SlidesamError, in_one_line
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.plan import ImagePlan, plan_image
from slidesam.tasks.pixels.resample import Scale, best_level, grids, make_scale
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.slide import Slide

_INTEGERS = re.compile(r"\[\n\s+((?:-?\d+,\n\s+)*-?\d+)\n\s+\]")
# Raised when the meaning of the files changes, so that a new version never reads an old one's results as its own.
_WORK_FORMAT = 3


class Run(BaseModel):
    """One slide × one label, with everything that a worker needs to know: paths, settings, facts. Small, and frozen.

    Attributes:
        slide: Facts on the slide.
        output: The output folder, absolute.
        settings: What to compute.
        segmenter_identity: What pixels depend on beside settings (hash of weights or source).
        tissue_identity: Hash of the mask image that says where tissue is, if the settings name one.
    """

    model_config = ConfigDict(frozen=True)

    slide: Slide
    output: Path
    settings: Settings
    segmenter_identity: str
    tissue_identity: str | None = None

    @property
    def name(self) -> str:
        """The slide's name, on which all outputs' names are built."""
        return self.slide.name

    @property
    def label(self) -> str:
        """Name of the label image."""
        return self.settings.output.label

    @property
    def store(self) -> Path:
        """The OME-Zarr with image and labels."""
        return self.output / f"{self.name}.ome.zarr"

    @property
    def provenance(self) -> Path:
        """The file that says how the result was made; written last of all."""
        return self.output / f"{self.name}.{self.label}.run.json"

    @property
    def overlay(self) -> Path:
        """The picture of the result."""
        return self.output / f"{self.name}.{self.label}.overlay.png"

    @property
    def work(self) -> Path:
        """Folder of intermediate results."""
        return work_folder(self.output, self.name, self.label)

    @cached_property
    def scale(self) -> Scale:
        """How many pixels of level 0 a pixel that is segmented takes.

        Raises:
            SettingsError: The wanted pixel size can't be had.
        """
        return make_scale(self.slide.mpp, self.settings.slide.target_mpp, self.settings.blocks.block_shape)

    @cached_property
    def grid(self) -> BlockGrid:
        """The blocks on level 0."""
        return grids(self.slide.shape, self.scale, self.settings.blocks.halo)[0]

    @cached_property
    def segmented_grid(self) -> BlockGrid:
        """The same blocks, in the pixels that are segmented."""
        return grids(self.slide.shape, self.scale, self.settings.blocks.halo)[1]

    @cached_property
    def segmented_slide(self) -> Slide:
        """Facts on the slide for its segmenter: its pixel size is that of the pixels that are segmented."""
        mpp = None if self.slide.mpp is None else self.scale.mpp(self.slide.mpp)
        return self.slide if self.scale.is_one else self.slide.model_copy(update={"mpp": mpp})

    @cached_property
    def segmented_level(self) -> int:
        """The level that blocks are read from: of the store where the slide is converted, else of the slide."""
        plan = self.image_plan
        if plan.mode == "rechunk":
            return 0
        own = [level.downsample for level in self.slide.levels]
        made = [(2.0**level, 2.0**level) for level in range(len(plan.levels))]
        return best_level(made if plan.mode == "convert" else own, self.scale)

    @cached_property
    def image_plan(self) -> ImagePlan:
        """How the pixels reach the blocks."""
        return plan_image(self.slide, self.settings.image, self.grid)

    @cached_property
    def causes(self) -> dict[str, dict[str, Any]]:
        """Per stage (image, segment, stitch, export) all that its result depends on, by name."""
        slide, settings, plan = self.slide, self.settings, self.image_plan
        source = {
            "format of the work": _WORK_FORMAT,
            "slide": slide.identity.model_dump(mode="json"),
            **{f"slide.{key}": getattr(slide, key) for key in ("series", "t", "z")},
        }
        arrays = {f"image.{key}": getattr(settings.image, key) for key in ("ome_zarr", "chunk_shape", "codec")}
        image = source | arrays | {"mode": plan.mode, "channels": plan.channels, "shard": plan.shard}
        # How the pixels reach the blocks isn't among the causes: they are the same, so another way costs no segmenting.
        segment = source | {
            "slide.mpp": slide.mpp,
            "slide.channels": slide.channels,
            "red, green and blue": slide.is_rgb,
            "blocks.block_shape": settings.blocks.block_shape,
            "blocks.halo": settings.blocks.halo,
            "blocks.tissue": self.tissue_identity or settings.blocks.tissue,
            **{f"segmenter.{key}": value for key, value in settings.segmenter.model_dump(mode="json").items()},
            "the segmenter's weights, code or versions": self.segmenter_identity,
        }
        if not self.scale.is_one:
            # Coarser levels of a slide and of the store are made in different ways.
            level = (plan.mode, self.segmented_level) if self.segmented_level else 0
            segment |= {"slide.target_mpp": self.scale, "the level that is read": level}
        stitch = {"segment": _digest(segment)} | {f"stitch.{key}": value for key, value in settings.stitch}
        export = arrays | {"stitch": _digest(stitch), "output.label": settings.output.label}
        return {"image": image, "segment": segment, "stitch": stitch, "export": export}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Per stage the hash of its causes, twelve hexadecimal digits each."""
        return {stage: _digest(causes) for stage, causes in self.causes.items()}

    @property
    def image_folder(self) -> Path:
        """Marks of the pieces that are converted or rechunked; with the pixels, if only rechunked."""
        mode = self.image_plan.mode.replace(" ", "-")
        return self.slide_work / f"{mode}-{self.fingerprints['image']}"

    @property
    def slide_work(self) -> Path:
        """Folder of intermediate results that all labels of a slide share; no label can be called so."""
        return work_folder(self.output, self.name, ".image")

    @property
    def segment_folder(self) -> Path:
        """Results of the blocks."""
        return self.work / f"segment-{self.fingerprints['segment']}"

    @property
    def stitch_folder(self) -> Path:
        """Matches and the relabelling."""
        return self.work / f"stitch-{self.fingerprints['stitch']}"

    @property
    def paint_folder(self) -> Path:
        """Marks of what was painted into the label image."""
        return self.work / f"paint-{self.fingerprints['export']}"


def work_folder(output: Path, name: str, label: str) -> Path:
    """Folder of a run's intermediate results."""
    return output / ".slidesam" / name / label


def jobs_folder(output: Path) -> Path:
    """Folder of the logs of jobs that worked on an output folder."""
    return output.resolve() / ".slidesam" / ".jobs"


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        path: Where to.
        data: What.
        sync: Whether to wait until it has reached the disk.

    Raises:
        OutputError: It can't be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            if sync:
                # Without it a power cut can leave the new name on an empty file.
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """What went wrong with a file of the output, in words."""
    why = os.strerror(error.errno) if error.errno else in_one_line(error)
    todo = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return OutputError(f"{path} can't be written ({why}): {todo}, then run the same command again")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors about a file of the output into words."""
    try:
        yield
    except SlidesamError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def write_json(path: Path, value: object, *, sync: bool = True) -> None:
    """Writes JSON atomically; lists of nothing but integers take a line."""
    text = json.dumps(value, indent=2, default=str)
    text = _INTEGERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomic(path, f"{text}\n".encode(), sync=sync)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping, or None where there is no such file or it isn't whole."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


class Marks:
    """Done-marks of a stage: one small JSON file per block, or per piece of an image.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "marks"

    def put(self, block_id: int | str, facts: dict[str, Any]) -> None:
        """Vouches for a block's result; call it after the result is written."""
        write_json(self.folder / f"{block_id}.json", {"block_id": block_id, **facts})

    def remove(self, block_id: int | str) -> None:
        """Takes a mark back; call it before the result is replaced."""
        (self.folder / f"{block_id}.json").unlink(missing_ok=True)

    def get(self, block_id: int | str) -> dict[str, Any] | None:
        """A block's facts, or None while it isn't done."""
        return read_json(self.folder / f"{block_id}.json")

    def names(self) -> set[str]:
        """Of all marks at once, without reading them: what a plan needs."""
        try:
            with os.scandir(self.folder) as entries:
                return {entry.name[:-5] for entry in entries if entry.name[0] != "." and entry.name.endswith(".json")}
        except FileNotFoundError:
            return set()


def block_facts(run: Run, block_id: int) -> dict[str, Any] | None:
    """The done-mark of a segmented block, or None: also where the mark is damaged or what it vouches for is gone."""
    facts = Marks(run.segment_folder).get(block_id)
    if facts is None or not isinstance(facts.get("count"), int):
        return None
    folder = run.segment_folder
    files = (f"blocks.zarr/c/{block_id}/0/0", f"objects/{block_id}.npy", f"frames/{block_id}.blosc")
    return facts if facts["count"] == 0 or all((folder / name).exists() for name in files) else None


def prepared(run: Run) -> dict[str, Any]:
    """What `prepare_slide` found: `params`, `fill`, and `blocks`, the ids of those that hold tissue (None for all).

    Raises:
        OutputError: It is gone.
    """
    known = read_json(run.segment_folder / "params.json")
    if known is None:
        raise OutputError(f"{run.name}: {run.segment_folder} lost its params.json: run the same command again")
    return known


def kept_blocks(run: Run) -> list[int]:
    """Ids of the blocks that are segmented, ascending."""
    blocks = prepared(run)["blocks"]
    return list(range(len(run.grid))) if blocks is None else blocks


def is_segmented(run: Run) -> bool:
    """Whether all blocks that hold tissue are segmented."""
    if read_json(run.segment_folder / "params.json") is None:
        return False
    return all(block_facts(run, block_id) is not None for block_id in kept_blocks(run))


def save_arrays(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> None:
    """Writes named arrays into one file, atomically."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Writes one array that can be memory-mapped, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """What `save_arrays` wrote.

    Raises:
        OutputError: The file is damaged; it is removed, so that the next run makes it anew.
    """
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} is damaged and was removed: run the same command again") from error


def batches(block_ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Block ids in groups of at most `size`."""
    return (tuple(block_ids[start : start + size]) for start in range(0, len(block_ids), size))
