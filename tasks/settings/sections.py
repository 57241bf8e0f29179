"""Owns the settings tree: what to compute. Where to compute it is a profile, another file.

The tree is frozen and read from YAML. The text below each field explains it with its unit; `slidesam settings` prints these
texts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from slidesam.tasks.settings import form
from slidesam.tasks.settings.methods import MicroSam, SegmenterSettings
from slidesam.tasks.settings.types import Duration, Pair, Section, as_plain_field


class SlideSettings(Section):
    """Choose which pixels of the file are the slide."""

    name: Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$")] | None = None
    """Name of the results; null = the file's name without its extension."""
    series: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Image inside the file, counted from 0; auto = the slide, by size, resolutions and name (scanners store label, macro and thumbnail beside it)."""  # noqa: E501
    t: Literal["first"] | Annotated[int, Field(ge=0)] = "first"
    """Time point to segment, counted from 0."""
    z: Literal["first"] | Annotated[int, Field(ge=0)] = "first"
    """Focal plane to segment, counted from 0."""
    channels: Literal["auto"] | tuple[int | str, ...] = "auto"
    """Channels that the segmenter sees, by index or name; auto = red, green and blue, otherwise the channel named like a nuclear stain, otherwise the first."""  # noqa: E501
    pages: Literal["auto", "channels", "z"] = "auto"
    """What the pages of a TIFF are if the file doesn't say it; auto = channels if they have names, otherwise focal planes (z)."""
    rgb: Literal["auto"] | bool = "auto"
    """Whether the channels are red, green and blue of a bright-field image rather than fluorescence; auto = as the file says, and for three unnamed 8-bit channels whether they are bright."""  # noqa: E501
    mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None
    """Pixel size in µm; set it if the file has none or a wrong one."""
    target_mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None
    """Pixel size in µm at which to segment, so that a model sees objects at the size that it was trained on; null = the slide's pixel size. Blocks and halo are in pixels of this size; labels always have the slide's size."""  # noqa: E501

    @field_validator("channels", mode="before")
    @classmethod
    def _wrap_single_channel(cls, value: object) -> object:
        return (value,) if isinstance(value, int) or (isinstance(value, str) and value != "auto") else value


class ImageSettings(Section):
    """Choose how arrays are written."""

    convert: Literal["auto", "always", "never"] = "auto"
    """Whether to write the slide as an OME-Zarr pyramid before it is segmented; auto = yes for TIFF, no for OME-Zarr; never = read the slide where it is."""  # noqa: E501
    rechunk: Literal["auto", "always", "never"] = "auto"
    """Whether to rewrite a slide that isn't converted in chunks that suit the blocks; auto = yes if reading would decode more than 4 times the pixels that are used."""  # noqa: E501
    ome_zarr: Literal["0.5", "0.4"] = "0.5"
    """OME-Zarr version: 0.5 (Zarr v3, sharded) or 0.4 (Zarr v2: one file per chunk)."""
    chunk_shape: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of a chunk, the unit of reading, in pixels; lowered to a divisor of a shard's side."""
    codec: Literal["zstd", "lz4", "none"] = "zstd"
    """Compression of the chunks."""


_BLOCK, _HALO = (2048, 2048), 128
_Halo = Annotated[int, Field(ge=0, le=8192)]


def _is_unset(value: object) -> bool:
    return value is None


class BlockSettings(Section):
    """Choose how the slide is cut into blocks."""

    # Left out of what is sent to a server where it isn't set: the form's schema has no null for it.
    block_shape: Annotated[Pair | None, as_plain_field(Pair)] = Field(default=None, exclude_if=_is_unset)
    """Height and width of a block in pixels, multiples of 16; one number for both; auto or null = 2048 px, with micro-sam as many whole tiles as that takes, mostly 2304 px."""  # noqa: E501
    halo: Annotated[_Halo | None, as_plain_field(_Halo)] = Field(default=None, exclude_if=_is_unset)
    """Context that a block reads on each side, in pixels; best is the width of the largest object; auto or null = 128 px, with micro-sam the overlap of its tiles, mostly 64 px."""  # noqa: E501
    tissue: str = "auto"
    """Which blocks to segment: auto = blocks that show more than background, off = all blocks, or the path of a mask image of the whole slide (0 = don't segment)."""  # noqa: E501
    region: Annotated[str | None, as_plain_field(str)] = Field(default=None, exclude_if=_is_unset)
    """Regions of interest: the path of a GeoJSON file of polygons, as QuPath exports annotations, or x, y, width, height in pixels of the full resolution, or with um behind in µm; only blocks that see one are computed; null = the whole slide."""  # noqa: E501
    blocks_per_task: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """Blocks that one Prefect task computes; auto = 1 for up to 256 blocks, then more, at most 16. It doesn't change results."""

    @field_validator("block_shape", mode="before")
    @classmethod
    def _read_number_as_square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else None if value == "auto" else value

    @field_validator("halo", mode="before")
    @classmethod
    def _read_auto_as_none(cls, value: object) -> object:
        return None if value == "auto" else value

    @field_validator("region", mode="before")
    @classmethod
    def _read_numbers_as_rectangle(cls, value: object) -> object:
        # YAML, and the command line, read numbers as a list. An empty field of the form is none.
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value or None

    @field_validator("tissue", mode="before")
    @classmethod
    def _read_false_as_off(cls, value: object) -> object:
        # YAML reads off as false.
        return "off" if value is False else value

    @property
    def sizes(self) -> tuple[Pair, int]:
        """Shape of the blocks and halo in pixels; for a segmenter that cuts no tiles where they are automatic."""
        return self.block_shape or _BLOCK, _HALO if self.halo is None else self.halo

    @field_validator("block_shape")
    @classmethod
    def _check_whole_chunks(cls, value: Pair | None) -> Pair | None:
        if value is not None and any(side % 16 for side in value):
            raise ValueError("must be multiples of 16 px, so that each block is whole chunks of the label image")
        return value


class StitchSettings(Section):
    """Choose how objects at seams become one; docs/stitching.md explains the rule."""

    min_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Smallest intersection over union, on the pixels that two blocks share, at which two labels are one object."""
    twin_border: Annotated[float, Field(gt=0)] = 3.0
    """If another block sees one object where a block has two labels, the two are one object that was cut if their common border is at least this many times as long as they are thick."""  # noqa: E501
    min_cover: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the object, as other blocks see it, that a block's label must cover so that the label becomes the object's outline."""  # noqa: E501
    max_conflict: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of an object that other objects may claim; an object with more is another view of those and is removed."""
    rescue: Annotated[float, Field(ge=0)] | None = 0.5
    """Smallest area, as a share of the median object's area, at which an object is kept that its own block missed and a neighbour sees whole in its halo; null = no such object is kept."""  # noqa: E501


ExportFormat = Literal["table", "outlines", "geoparquet", "anndata", "spatialdata", "report"]


class OutputSettings(Section):
    """Choose what is written."""

    label: str = Field(default="cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the label image; a slide can have several label images with different names."""
    formats: tuple[ExportFormat, ...] = ("table", "outlines", "report")
    """What is written of the objects beside the label image: table = a row per object (Parquet), outlines = their outlines for QuPath (GeoJSON), geoparquet = table and outlines in one (GeoParquet), anndata = the table for scanpy (needs the extra anndata), spatialdata = image, labels, outlines and table for spatialdata, report = a page with pictures and figures (HTML). `slidesam export` writes them later."""  # noqa: E501
    simplify: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """How far outlines may be from the borders of the pixels, in pixels of the slide's full resolution; then they have fewer points, and stay valid; 0 = exactly the pixels."""  # noqa: E501


class RunSettings(Section):
    """Choose how a run behaves; none of this changes results."""

    retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Number of times that a failed block is tried again."""
    retry_delay: Annotated[float, Field(ge=0)] = 10.0
    """Seconds before a block is tried again."""
    retry_jitter: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Share of the delay by which it varies at random, so that retries don't all start at once."""
    block_timeout: Duration | None = None
    """Longest time that one block may take, in seconds or as 90s, 30m, 2h; then its worker is stopped and the block is tried again; null = no limit."""  # noqa: E501
    verify: Literal["sample", "whole", "none"] = "sample"
    """What is read again of a finished result and compared with its checksums: some files of image and labels, all, or none."""
    keep_work: Duration = "7d"
    """How long `slidesam clean` keeps the intermediate results of a finished run; with them, a slide can be stitched again without segmenting it again."""  # noqa: E501


def _as_settings_form(schema: dict[str, Any]) -> None:
    """Change the schema of all settings: the segmenter's default doesn't have the form's shape."""
    form.number_fields(schema)
    schema["properties"]["segmenter"].pop("default", None)


class Settings(Section):
    """All settings: what to compute. `Settings()` works for a slide without any metadata."""

    model_config = ConfigDict(json_schema_extra=_as_settings_form)

    slide: SlideSettings = SlideSettings()
    image: ImageSettings = ImageSettings()
    blocks: BlockSettings = BlockSettings()
    segmenter: SegmenterSettings = MicroSam()
    stitch: StitchSettings = StitchSettings()
    output: OutputSettings = OutputSettings()
    run: RunSettings = RunSettings()
