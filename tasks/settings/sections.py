"""The settings: what to compute. One frozen tree, read from YAML; where to compute it is a profile, another file.

Every field says in its description what it means and in which unit; `slidesam settings` prints them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from slidesam.tasks.settings import form
from slidesam.tasks.settings.methods import MicroSam, SegmenterSettings
from slidesam.tasks.settings.types import Duration, Pair, Section


class SlideSettings(Section):
    """Which pixels of the file are the slide."""

    name: Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$")] | None = None
    """Name that the results bear; none = that of the file without its extension."""
    series: Annotated[int, Field(ge=0)] = 0
    """Image inside the file, counted from 0 (an SVS holds thumbnail, label and macro as further series)."""
    t: Literal["first"] | Annotated[int, Field(ge=0)] = "first"
    """Time point to segment, counted from 0."""
    z: Literal["first"] | Annotated[int, Field(ge=0)] = "first"
    """Focal plane to segment, counted from 0."""
    channels: Literal["auto"] | tuple[int | str, ...] = "auto"
    """Channels that the segmenter sees, by index or name; auto = red, green and blue, else the one named like a nuclear stain, else the first."""  # noqa: E501
    mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None
    """Pixel size in µm, where the file states none or a wrong one."""
    target_mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None
    """Pixel size in µm at which to segment, so that a model sees objects at the size that it knows; none = the slide's. Blocks and halo are in pixels of that size; labels are the slide's size all the same."""  # noqa: E501

    @field_validator("channels", mode="before")
    @classmethod
    def _one_channel(cls, value: object) -> object:
        return (value,) if isinstance(value, int) or (isinstance(value, str) and value != "auto") else value


class ImageSettings(Section):
    """How arrays are written."""

    convert: Literal["auto", "always", "never"] = "auto"
    """Whether to write the slide as an OME-Zarr pyramid before it is segmented; auto = TIFF yes, OME-Zarr no; never = read in place."""  # noqa: E501
    rechunk: Literal["auto", "always", "never"] = "auto"
    """Whether to rewrite the pixels to segment in chunks that suit the blocks, where they aren't converted; auto = where reading would decode 4 times what is used."""  # noqa: E501
    ome_zarr: Literal["0.5", "0.4"] = "0.5"
    """OME-Zarr version: 0.5 (Zarr v3, sharded) or 0.4 (Zarr v2: one file per chunk)."""
    chunk_shape: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of a chunk, the unit of reading, in pixels; lowered to a divisor of the block's side."""
    codec: Literal["zstd", "lz4", "none"] = "zstd"
    """Compression of the chunks."""


class BlockSettings(Section):
    """How the slide is cut."""

    block_shape: Pair = (2048, 2048)
    """Height and width of a block in pixels, multiples of 16; one number for both."""
    halo: Annotated[int, Field(ge=0, le=8192)] = 128
    """Context that a block reads on each side, in pixels; as wide as the largest object is best."""
    tissue: str = "auto"
    """Which blocks to segment: auto = those that show more than background, off = all, or the path of a mask image of the whole slide (0 = leave out)."""  # noqa: E501
    blocks_per_task: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """Blocks that one Prefect task computes; auto = 1 up to 256 blocks, then more, 16 at most. Doesn't change pixels."""

    @field_validator("block_shape", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @field_validator("tissue", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # YAML reads off as false.
        return "off" if value is False else value

    @field_validator("block_shape")
    @classmethod
    def _whole_chunks(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(side % 16 for side in value):
            raise ValueError("must be multiples of 16 px, so that each block is whole chunks of the label image")
        return value


class StitchSettings(Section):
    """How objects at seams become one; docs/stitching.md explains the rule."""

    min_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Intersection over union, on the pixels that two blocks share, from which on two labels are one object."""
    twin_border: Annotated[float, Field(gt=0)] = 3.0
    """Two labels of a block count as one object cut in two, where another block sees one, if their common border is this many times as long as they are thick."""  # noqa: E501
    min_cover: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of what other blocks show of an object that a block's label must cover to give the object its outline."""
    max_conflict: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of an object that others may claim; beyond it the object is taken for another view of them and dropped."""
    rescue: Annotated[float, Field(ge=0)] | None = 0.5
    """Objects that their own block missed and a neighbour sees whole in its halo are kept from this share of the median object's area on; null = never."""  # noqa: E501


class OutputSettings(Section):
    """What is written."""

    label: str = Field(default="cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the label image; runs with different labels live side by side."""


class RunSettings(Section):
    """How a run behaves; doesn't change pixels."""

    retries: Annotated[int, Field(ge=0, le=20)] = 2
    """How often a failed block is tried again."""
    retry_delay: Annotated[float, Field(ge=0)] = 10.0
    """Seconds before a block is tried again."""
    retry_jitter: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Share of the delay by which it varies at random, so that retries don't come all at once."""
    block_timeout: Duration | None = None
    """How long one block may take, in seconds or as 90s, 30m, 2h; its worker is then ended and the block tried again; none = as long as it likes."""  # noqa: E501
    keep_work: Duration = "7d"
    """How long `slidesam clean` keeps the intermediate results of a finished run, from which another stitching is made without segmenting."""  # noqa: E501


def _as_settings_form(schema: dict[str, Any]) -> None:
    """The schema of all settings: the segmenter's default isn't of the form's shape."""
    form.in_order(schema)
    schema["properties"]["segmenter"].pop("default", None)


class Settings(Section):
    """What to compute. `Settings()` works for a slide without any metadata."""

    model_config = ConfigDict(json_schema_extra=_as_settings_form)

    slide: SlideSettings = SlideSettings()
    image: ImageSettings = ImageSettings()
    blocks: BlockSettings = BlockSettings()
    segmenter: SegmenterSettings = MicroSam()
    stitch: StitchSettings = StitchSettings()
    output: OutputSettings = OutputSettings()
    run: RunSettings = RunSettings()
