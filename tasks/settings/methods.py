"""Owns the settings of the segmenters: one section per kind, of which `segmenter.kind` chooses one."""

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
    """Name in micro-sam's registry, or nuclei-small, a small model for nuclei that comes with slidesam; auto = vit_b_histopathology for red, green and blue, otherwise vit_b_lm."""  # noqa: E501
    checkpoint: str | None = None
    """File with your own weights instead of the registry's; `model` then names their architecture."""
    trust: bool = False
    """Whether `checkpoint` is unpickled if it holds more than weights; unpickling runs whatever code its maker put in."""
    mode: Literal["auto", "amg", "ais", "apg"] = "auto"
    """amg = automatic mask generation, ais = instance segmentation by the decoder, apg = prompts from the decoder; auto = ais if the model has a decoder, otherwise amg."""  # noqa: E501
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto = CUDA, otherwise Apple's MPS, otherwise the CPU."""
    field: Literal["auto"] | Annotated[int, Field(ge=64, le=8192)] = "auto"
    """Side of the square of the slide that SAM sees at once, in pixels; auto = as the model was trained: 512 px for micro-sam's fine-tuned models, 1024 px for plain SAM and nuclei-small."""  # noqa: E501
    tile_shape: Literal["auto", "off"] | Pair = "auto"
    """Shape of micro-sam's tiles inside a block, in pixels; off = the whole block at once, scaled to SAM's 1024 px; auto = the field without the overlap, and off for blocks that aren't larger than the field."""  # noqa: E501
    tile_halo: Literal["auto"] | Pair = "auto"
    """Overlap of these tiles per side, in pixels; auto = an eighth of the field, or a quarter of the tile if tile_shape is given."""  # noqa: E501
    tiling: Literal["even", "micro-sam"] = "even"
    """How a block is cut into tiles: even = SAM sees all of them at one scale; micro-sam = as micro-sam does it, which cuts tiles off at the block's rim and enlarges them there."""  # noqa: E501
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Tiles that the encoder takes at once, halved if memory is too small; more is faster on a GPU. docs/segmentation.md explains its effect on labels."""  # noqa: E501
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the numbers that the encoder computes with; auto = bfloat16 on a GPU that supports it, which changes some pixels."""  # noqa: E501
    scaling: Literal["slide", "tile"] = "slide"
    """How intensities become 8 bit: by percentiles of the whole slide, or by each tile's minimum and maximum as micro-sam does."""  # noqa: E501
    options: dict[str, Any] = Field(default_factory=dict)
    """micro-sam's own generator options, by name (points_per_side, pred_iou_thresh, min_size, ...)."""

    inputs: tuple[str, ...] = ()
    """What SAM sees as red, green and blue: one to three of the slide's chosen channels by name, several joined by + (the brightest counts), or stains of a bright-field slide (hematoxylin, eosin, dab); empty = the channels in their order."""  # noqa: E501
    stains: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    """Your own stain vectors: name, and optical density in red, green and blue."""

    classes: Literal["off", "semantic", "objects"] = "off"
    """Whether each object gets a class: semantic = from a decoder that names each pixel's class (PathoSAM's, of nuclei), objects = from a classifier of objects that you trained in micro-sam; docs/segmentation.md."""  # noqa: E501
    class_file: str | None = None
    """semantic: file with the weights of your own decoder, null = PathoSAM's; objects: the classifier's .joblib file."""
    class_names: tuple[str, ...] = ()
    """Names of classes 0, 1, 2, ..., the background first; empty = PathoSAM's names for semantic, background and numbers for objects."""  # noqa: E501
    class_trust: bool = False
    """Whether `class_file` is unpickled, which runs whatever code its maker put in; objects needs it."""

    @field_validator("tile_shape", "tile_halo", mode="before")
    @classmethod
    def _read_number_as_square(cls, value: object) -> object:
        # YAML reads off as false.
        value = "off" if value is False or value is None else value
        return (value, value) if isinstance(value, int) else value

    @field_validator("classes", mode="before")
    @classmethod
    def _read_false_as_off(cls, value: object) -> object:
        # YAML reads off as false.
        return "off" if value is False or value is None else value

    @field_validator("inputs", mode="before")
    @classmethod
    def _wrap_single_input(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("inputs")
    @classmethod
    def _check_number_of_inputs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 3:
            raise ValueError("SAM sees three channels: join several with +")
        return value

    @field_validator("stains")
    @classmethod
    def _check_stains_are_used(
        cls, value: dict[str, tuple[float, float, float]], info: ValidationInfo
    ) -> dict[str, tuple[float, float, float]]:
        if value and not info.data.get("inputs"):
            raise ValueError("they are used only if segmenter.inputs names them, and it is empty")
        return value


class Watershed(Section):
    """Nuclei by a slide-wide threshold and a watershed on the distance transform (scikit-image); needs no weights."""

    model_config = ConfigDict(title="watershed")

    kind: Literal["watershed"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    signal: Literal["auto", "hematoxylin", "bright", "dark"] = "auto"
    """How objects look: stained by hematoxylin, or brighter or darker than background; auto = hematoxylin for red, green and blue, otherwise bright."""  # noqa: E501
    threshold: float | None = None
    """Threshold on the smoothed signal; null = Otsu's threshold over the whole slide."""
    diameter: Annotated[float, Field(gt=0)] = 8.0
    """Typical diameter of an object in µm (in pixels if the pixel size is unknown)."""


class Cellpose(Section):
    """Cellpose 4 with weights from a file; options have Cellpose's own names."""

    model_config = ConfigDict(title="cellpose")

    kind: Literal["cellpose"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    model: str | None = None
    """File with weights for Cellpose 4, your own or its cpsam_v2; required, because nothing is downloaded."""
    diameter: float | None = Field(default=None, gt=0, title="Diameter (px)")
    """Diameter of the objects in pixels: a block is scaled so that it becomes 30 px; null = no scaling."""
    flow_threshold: Annotated[float, Field(ge=0)] = 0.4
    """Largest error of its flows with which an object is kept; 0 = keep all."""
    cellprob_threshold: float = 0.0
    """Value that a pixel of an object must exceed, from about -6 to 6; a lower value finds more and larger objects."""
    min_size: Annotated[int, Field(ge=-1)] = 15
    """Objects with fewer pixels are removed; -1 = no object is removed."""
    niter: Annotated[int, Field(ge=1)] | None = None
    """Number of steps for which a pixel follows the flows; null = 200, in proportion to the diameter if that is given."""
    percentiles: Percentiles = (1.0, 99.0)
    """Percentiles of each channel over the whole slide that become 0 and 1; Cellpose itself takes them from each image."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Tiles that the network takes at once."""
    use_bfloat16: bool = True
    """Whether the network computes with 16 bits instead of 32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto = CUDA, otherwise Apple's MPS, otherwise the CPU."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of Cellpose's eval, by name (resample, augment, tile_overlap, bsize, max_size_fraction)."""


class StarDist(Section):
    """StarDist's 2D models, from a folder; options have StarDist's own names."""

    model_config = ConfigDict(title="stardist")

    kind: Literal["stardist"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    model: str | None = None
    """Folder of a model: config.json, weights (.h5) and, if it has them, thresholds.json; required, because nothing is downloaded."""  # noqa: E501
    prob_thresh: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability that an object's centre must exceed; null = the model's own threshold."""
    nms_thresh: Annotated[float, Field(ge=0, le=1)] | None = None
    """Overlap at which two objects count as one; null = the model's own threshold."""
    n_tiles: Pair | None = None
    """Number of tiles, down and across, in which a block is computed if memory is too small; one number for both; null = the whole block at once."""  # noqa: E501
    percentiles: Percentiles = (1.0, 99.8)
    """Percentiles over the whole slide that become 0 and 1."""
    normalize_channels: Literal["auto", "jointly", "independently"] = "auto"
    """Whether channels share percentiles (jointly) or have separate ones; auto = jointly for red, green and blue, otherwise independently."""  # noqa: E501
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto = on a GPU if TensorFlow finds one."""

    @field_validator("n_tiles", mode="before")
    @classmethod
    def _read_number_as_square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value


class Function(Section):
    """A Python function `image -> labels`, or a segmenter class."""

    model_config = ConfigDict(title="function")

    kind: Literal["function"]
    """Segmentation method: micro-sam, watershed, cellpose, stardist or function."""
    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Its place as package.module:name, importable on every worker; docs/own-segmenter.md says who may name which."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the call (of the constructor if it is a class)."""


# In the order of SEGMENTER_KINDS.
SEGMENTER_SECTIONS: tuple[type[Section], ...] = (MicroSam, Watershed, Cellpose, StarDist, Function)
_SECTION_OF_KIND = dict(zip(SEGMENTER_KINDS, SEGMENTER_SECTIONS, strict=True))
SegmenterSettings = Annotated[
    Annotated[MicroSam | Watershed | Cellpose | StarDist | Function, Field(discriminator="kind")],
    BeforeValidator(partial(form.choose_section, _SECTION_OF_KIND)),
    WithJsonSchema(form.make_choice_schema(_SECTION_OF_KIND), mode="validation"),
]
