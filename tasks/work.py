"""A run (slide × label) and its folder of intermediate results: what is where, and how one knows that it is whole.

    OUT/.slidesam/<name>/<label>/
        state.json                        what `slidesam status` shows
        segment-<fingerprint>/            params.json, blocks.zarr, marks/<block_id>.json
        stitch-<fingerprint>/             matches/<block_id>.npz, relabelling.npy, resolved.json, marks/<block_id>.json

Folders carry the fingerprint of their stage, so results made under other settings are never mixed in, and a changed setting
redoes its stage and those after it only. A done-mark is written last, after the result that it vouches for.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from zarr.codecs import BloscCodec

from slidesam.tasks.config import Settings
from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.slide import Slide

# Raised when the meaning of the files changes, so that a new version never reads an old one's results as its own.
_WORK_FORMAT = 1
# Side of the chunks inside a block's result: what a seam reads at least.
_RESULT_CHUNK = 256


class Run(BaseModel):
    """One slide × one label, with everything that a worker needs to know: paths, settings, facts. Small, and frozen.

    Attributes:
        slide: Facts on the slide.
        output: The output folder, absolute.
        settings: What to compute.
        segmenter_identity: What pixels depend on beside settings (hash of weights or source).
    """

    model_config = ConfigDict(frozen=True)

    slide: Slide
    output: Path
    settings: Settings
    segmenter_identity: str

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
    def grid(self) -> BlockGrid:
        """The blocks of level 0."""
        return BlockGrid(self.slide.shape, self.settings.blocks.block_shape, self.settings.blocks.halo)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Per stage (segment, stitch, export) the hash of all that its result depends on, twelve hex digits each."""
        slide, settings = self.slide, self.settings
        segment = _digest(
            _WORK_FORMAT,
            slide.identity.model_dump(mode="json"),
            [slide.series, slide.t, slide.z, slide.channels, slide.mpp, slide.is_rgb],
            settings.blocks.model_dump(mode="json"),
            settings.segmenter.model_dump(mode="json"),
            self.segmenter_identity,
        )
        stitch = _digest(segment, settings.stitch.model_dump(mode="json"))
        export = _digest(stitch, settings.image.model_dump(mode="json"), settings.output.model_dump(mode="json"))
        return {"segment": segment, "stitch": stitch, "export": export}

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


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old one or the whole new one, never a part.

    Raises:
        OutputError: It can't be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            # Without it a power cut can leave the new name on an empty file.
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path} can't be written ({os.strerror(error.errno or 0)}): check the folder, then run again"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping, or None where there is no such file or it isn't whole."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


class Marks:
    """Done-marks of a stage: one small JSON file per block.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "marks"

    def put(self, block_id: int, facts: dict[str, Any]) -> None:
        """Vouches for a block's result; call it after the result is written."""
        write_json(self.folder / f"{block_id}.json", {"block_id": block_id, **facts})

    def get(self, block_id: int) -> dict[str, Any] | None:
        """A block's facts, or None while it isn't done."""
        return read_json(self.folder / f"{block_id}.json")


class BlockResults:
    """Local labels of all blocks: one Zarr array of (block, y, x), one shard file per block, written whole by one task.

    A block's labels start at (0, 0) with its clipped outer region. A block without objects has no file: its done-mark
    alone says that it was computed.

    Args:
        run: The run.
        create: Make the array if it isn't there; else only open it.
    """

    def __init__(self, run: Run, *, create: bool = False) -> None:
        self.grid = run.grid
        path = run.segment_folder / "blocks.zarr"
        if create and not (path / "zarr.json").exists():
            create_results(path, run.grid)
        self.array: zarr.Array[Any] = zarr.open_array(path, mode="r+")

    def write(self, block: Block, labels: NDArray[np.uint32]) -> None:
        """Stores a block's (y, x) labels of its outer region."""
        whole = np.zeros(self.array.shape[1:], np.uint32)
        whole[: labels.shape[0], : labels.shape[1]] = labels
        self.array[block.block_id] = whole

    def read(self, block: Block, region: Region) -> NDArray[np.uint32]:
        """A block's labels on a region of the slide that lies inside its outer region, (y, x) uint32."""
        inside = region.relative_to(block.outer)
        return np.asarray(self.array[(block.block_id, *inside.slices)], np.uint32)


def block_facts(run: Run, block_id: int) -> dict[str, Any] | None:
    """The done-mark of a segmented block, or None: also where the mark is damaged or what it vouches for is gone."""
    facts = Marks(run.segment_folder).get(block_id)
    if facts is None or not isinstance(facts.get("count"), int):
        return None
    shard = run.segment_folder / "blocks.zarr" / "c" / str(block_id) / "0" / "0"
    return facts if facts["count"] == 0 or shard.exists() else None


def create_results(path: Path, grid: BlockGrid) -> None:
    """Makes the empty array of block results."""
    height, width = (-(-size // _RESULT_CHUNK) * _RESULT_CHUNK for size in grid.outer_shape)
    zarr.create_array(
        path,
        shape=(len(grid), height, width),
        shards=(1, height, width),
        chunks=(1, _RESULT_CHUNK, _RESULT_CHUNK),
        dtype="uint32",
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")],
        overwrite=True,
    )


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes named arrays into one file, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
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
