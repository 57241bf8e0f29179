"""Settings of the segmenters: one section per kind, of which `segmenter.kind` chooses one."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from slidesam.tasks.settings import form
from slidesam.tasks.settings.types import Pair, Percentiles, Section

SEGMENTER_KINDS = ("micro-sam", "watershed", "cellpose", "stardist", "function")


class MicroSam(Section):
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


class Watershed(Section):
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


class Cellpose(Section):
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


class StarDist(Section):
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


class Function(Section):
    """A Python function `image -> labels`, or a segmenter class."""

    model_config = ConfigDict(title="function")

    kind: Literal["function"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Where it is, as package.module:name, importable on every worker."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments that it is called with (that the class is made with)."""


# In the order of SEGMENTER_KINDS.
SEGMENTER_SECTIONS: tuple[type[Section], ...] = (MicroSam, Watershed, Cellpose, StarDist, Function)
_CHOICE = dict(zip(SEGMENTER_KINDS, SEGMENTER_SECTIONS, strict=True))
SegmenterSettings = Annotated[
    Annotated[MicroSam | Watershed | Cellpose | StarDist | Function, Field(discriminator="kind")],
    BeforeValidator(partial(form.chosen, _CHOICE)),
    WithJsonSchema(form.choice(_CHOICE), mode="validation"),
]
