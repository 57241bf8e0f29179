"""The settings: what to compute. One frozen tree, read from YAML; where to compute it is a profile, another file.

Every field says in its description what it means and in which unit; `slidesam settings` prints them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings import form

Pair = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
_Percent = Annotated[float, Field(ge=0, le=100)]


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("the first must be the smaller one")
    return value


Percentiles = Annotated[tuple[_Percent, _Percent], AfterValidator(_rising)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(duration: str) -> float:
    """Length of a duration in seconds.

    Example:
        >>> seconds_of("90s"), seconds_of("1.5h"), seconds_of("7d")
        (90.0, 5400.0, 604800.0)
    """
    return float(duration[:-1]) * _UNITS[duration[-1]]


def _with_unit(value: object) -> object:
    """Plain numbers are seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}s"
    return f"{value}s" if isinstance(value, str) and value.replace(".", "", 1).isdigit() else value


Duration = Annotated[str, BeforeValidator(_with_unit), Field(pattern=r"^\d+(\.\d+)?[smhdw]$")]
SEGMENTER_KINDS = ("micro-sam", "watershed", "cellpose", "stardist", "function")


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        field_title_generator=form.title,
        json_schema_extra=form.in_order,
    )


class SlideSettings(_Section):
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


class ImageSettings(_Section):
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


class BlockSettings(_Section):
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


class MicroSam(_Section):
    """micro-sam's automatic segmentation."""

    model_config = ConfigDict(title="micro-sam")

    kind: Literal["micro-sam"] = "micro-sam"
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    model: str = "auto"
    """Name in micro-sam's registry; auto = vit_b_histopathology for red, green, blue and vit_b_lm for all else."""
    checkpoint: str | None = None
    """File with weights of one's own, instead of the registry's; `model` then names its architecture."""
    mode: Literal["auto", "amg", "ais", "apg"] = "auto"
    """Automatic mask generation, instance segmentation by the decoder, or prompts from the decoder; auto = ais with a decoder, else amg."""  # noqa: E501
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto = the first at hand of CUDA, Apple's MPS, the CPU."""
    tile_shape: Literal["auto", "off"] | Pair = "auto"
    """micro-sam's tiles inside a block, in pixels; off = the whole block at once, scaled to SAM's 1024 px; auto = with their overlap 1024 px, off for blocks that aren't larger."""  # noqa: E501
    tile_halo: Literal["auto"] | Pair = "auto"
    """Overlap of those tiles per side, in pixels; auto = the blocks' halo, 256 px at most, or a quarter of a tile whose shape is given."""  # noqa: E501
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Tiles that the encoder takes at once, halved where memory doesn't suffice; more is faster on a GPU. docs/segmentation.md says what it does to labels."""  # noqa: E501
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Numbers that the encoder computes with; auto = bfloat16 on a GPU that has it, which changes some pixels."""
    scaling: Literal["slide", "tile"] = "slide"
    """Intensities to 8 bit by percentiles of the whole slide, or by each tile's minimum and maximum as micro-sam does."""
    options: dict[str, Any] = Field(default_factory=dict)
    """micro-sam's own generator options by their names (points_per_side, pred_iou_thresh, min_size, ...)."""

    inputs: tuple[str, ...] = ()
    """What SAM sees as red, green and blue, one to three of the slide's chosen channels by name, several joined by + (the brightest counts), or stains of a bright-field slide (hematoxylin, eosin, dab); none = the channels as they come."""  # noqa: E501
    stains: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    """Stain vectors of one's own: name and optical density in red, green and blue."""

    @field_validator("tile_shape", "tile_halo", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        # YAML reads off as false.
        value = "off" if value is False or value is None else value
        return (value, value) if isinstance(value, int) else value

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_input(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("inputs")
    @classmethod
    def _three_inputs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 3:
            raise ValueError("SAM sees three channels: join several by +")
        return value

    @field_validator("stains")
    @classmethod
    def _named(
        cls, value: dict[str, tuple[float, float, float]], info: ValidationInfo
    ) -> dict[str, tuple[float, float, float]]:
        if value and not info.data.get("inputs"):
            raise ValueError("they count where segmenter.inputs names them, and it names nothing")
        return value


class Watershed(_Section):
    """Nuclei by a slide-wide threshold and a watershed on the distance transform (scikit-image); needs no weights."""

    model_config = ConfigDict(title="watershed")

    kind: Literal["watershed"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    signal: Literal["auto", "hematoxylin", "bright", "dark"] = "auto"
    """What objects are: stained by hematoxylin, brighter or darker than background; auto = hematoxylin for red, green, blue, else bright."""  # noqa: E501
    threshold: float | None = None
    """Threshold on the smoothed signal; none = Otsu's over the whole slide."""
    diameter: Annotated[float, Field(gt=0)] = 8.0
    """Typical diameter of an object in µm (in pixels where the pixel size is unknown)."""


class Cellpose(_Section):
    """Cellpose 4 with weights from a file; its options by Cellpose's own names."""

    model_config = ConfigDict(title="cellpose")

    kind: Literal["cellpose"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    model: str | None = None
    """File with weights for Cellpose 4, one's own or its cpsam_v2; has to be given, as nothing is downloaded."""
    diameter: float | None = Field(default=None, gt=0, title="Diameter (px)")
    """Diameter of the objects in pixels: a block is scaled so that it becomes 30 px; none = as it is."""
    flow_threshold: Annotated[float, Field(ge=0)] = 0.4
    """Largest error of an object's flows with which it is kept; 0 = keep all."""
    cellprob_threshold: float = 0.0
    """What a pixel of an object must exceed, from about -6 to 6; less finds more and larger objects."""
    min_size: Annotated[int, Field(ge=-1)] = 15
    """Pixels below which an object is dropped; -1 = none."""
    niter: Annotated[int, Field(ge=1)] | None = None
    """Steps that a pixel follows the flows; none = 200, in proportion to the diameter where that is given."""
    percentiles: Percentiles = (1.0, 99.0)
    """Percentiles of each channel over the whole slide that become 0 and 1; Cellpose alone takes them from each image."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Tiles that the network takes at once."""
    use_bfloat16: bool = True
    """Whether the network computes with 16 bits instead of 32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto = the first at hand of CUDA, Apple's MPS, the CPU."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of Cellpose's eval by their names (resample, augment, tile_overlap, bsize, max_size_fraction)."""


class StarDist(_Section):
    """StarDist's 2D models, from a folder; its options by StarDist's own names."""

    model_config = ConfigDict(title="stardist")

    kind: Literal["stardist"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    model: str | None = None
    """Folder of a model: config.json, weights (.h5) and, if it has them, thresholds.json; has to be given, as nothing is downloaded."""  # noqa: E501
    prob_thresh: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability that an object's centre must exceed; none = the model's own threshold."""
    nms_thresh: Annotated[float, Field(ge=0, le=1)] | None = None
    """Overlap from which on two objects count as one; none = the model's own threshold."""
    n_tiles: Pair | None = None
    """Tiles, down and across, that a block is computed in where memory doesn't suffice; one number for both, none = the block at once."""  # noqa: E501
    percentiles: Percentiles = (1.0, 99.8)
    """Percentiles over the whole slide that become 0 and 1."""
    normalize_channels: Literal["auto", "jointly", "independently"] = "auto"
    """Whether channels have percentiles of their own; auto = jointly for red, green and blue, else independently."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto = on a GPU where TensorFlow finds one."""

    @field_validator("n_tiles", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value


class Function(_Section):
    """A Python function `image -> labels`, or a segmenter class."""

    model_config = ConfigDict(title="function")

    kind: Literal["function"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Where it is, as package.module:name, importable on every worker."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments that it is called with (that the class is made with)."""


# In the order of SEGMENTER_KINDS.
_KINDS: tuple[type[_Section], ...] = (MicroSam, Watershed, Cellpose, StarDist, Function)
_CHOICE = dict(zip(SEGMENTER_KINDS, _KINDS, strict=True))
SegmenterSettings = Annotated[
    Annotated[MicroSam | Watershed | Cellpose | StarDist | Function, Field(discriminator="kind")],
    BeforeValidator(partial(form.chosen, _CHOICE)),
    WithJsonSchema(form.choice(_CHOICE), mode="validation"),
]


class StitchSettings(_Section):
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


class OutputSettings(_Section):
    """What is written."""

    label: str = Field(default="cells", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the label image; runs with different labels live side by side."""


class RunSettings(_Section):
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


class Settings(_Section):
    """What to compute. `Settings()` works for a slide without any metadata."""

    model_config = ConfigDict(json_schema_extra=_as_settings_form)

    slide: SlideSettings = SlideSettings()
    image: ImageSettings = ImageSettings()
    blocks: BlockSettings = BlockSettings()
    segmenter: SegmenterSettings = MicroSam()
    stitch: StitchSettings = StitchSettings()
    output: OutputSettings = OutputSettings()
    run: RunSettings = RunSettings()


def make_settings(values: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Validates settings from nested mappings.

    Args:
        values: Nested mapping as read from YAML; missing keys take their defaults.
        overrides: Dotted name → value, applied on top. Another `segmenter.kind` starts from that kind's defaults.

    Raises:
        SettingsError: A name is unknown or a value can't be used; the message names it.

    Example:
        >>> make_settings(overrides={"blocks.halo": 64}).blocks.halo
        64
        >>> make_settings(overrides={"blocks.hallo": 64})
        Traceback (most recent call last):
        slidesam.tasks.errors.SettingsError: unknown setting blocks.hallo: did you mean blocks.halo?
    """
    # A section without content is None in YAML.
    tree = {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in (values or {}).items()
        if value is not None
    }
    changed = dict(overrides or {})
    segmenter = tree.get("segmenter", {})
    kind = changed.get("segmenter.kind")
    if kind is not None and isinstance(segmenter, dict) and segmenter.get("kind", "micro-sam") != kind:
        tree["segmenter"] = {"kind": kind}
    for name, value in changed.items():
        _put(tree, name, value)
    if isinstance(tree.get("segmenter"), dict):
        tree["segmenter"].setdefault("kind", "micro-sam")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_in_words(error)) from None


def _put(tree: dict[str, Any], name: str, value: object) -> None:
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"setting {name}: {section} holds a value, not further settings")
    tree[key] = value


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    kind = parts.pop(1) if parts[0] == "segmenter" and len(parts) > 1 and parts[1] in SEGMENTER_KINDS else None
    # Of a choice between types pydantic names the branch too.
    name = ".".join(part for part in parts if "[" not in part and part not in ("int", "float", "str"))
    given = first["input"]
    match first["type"]:
        case "extra_forbidden":
            return f"unknown setting {name}: {_suggestion(name, kind)}"
        case "union_tag_invalid" | "union_tag_not_found":
            given = given.get("kind") if isinstance(given, Mapping) else given
            return f"setting segmenter.kind: must be one of {', '.join(SEGMENTER_KINDS)}, not {given!r}"
        case "missing":
            return f"setting {name} is needed: `slidesam settings --segmenter {kind}` explains it"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"setting {name}: must be settings of its own (`{name}: {{...}}`), not {given!r}"
    description = _descriptions(kind).get(name, "").split(";")[0].rstrip(".")
    return f"setting {name}: {first['msg'].removeprefix('Value error, ')}, not {given!r}" + (
        f" ({description})" if description else ""
    )


def _suggestion(name: str, kind: str | None) -> str:
    """What may have been meant by a name that this tree doesn't have."""
    key = name.rpartition(".")[2]
    owners = [_kind_of(model) for model in _KINDS if kind is not None and key in model.model_fields]
    if owners:
        return f"it belongs to segmenter.kind {' or '.join(owners)}, and the kind is {kind}"
    close = difflib.get_close_matches(name, _descriptions(), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "`slidesam settings` lists all"


def _kind_of(model: type[_Section]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _descriptions(kind: str | None = None) -> dict[str, str]:
    """Dotted name of every setting → its explanation, by this kind of segmenter where several have the name."""
    kinds = sorted(_KINDS, key=lambda model: _kind_of(model) == kind)
    sections: list[tuple[str, type[BaseModel]]] = [("segmenter", model) for model in kinds]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
    return {
        f"{section}.{key}": field.description or ""
        for section, model in sections
        for key, field in model.model_fields.items()
    }
