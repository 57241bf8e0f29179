"""At which scale each model was trained: the field, a square of the image that fills the 1024 px of SAM's encoder.

SAM enlarges or shrinks whatever it is given until its longer side has 1024 px. A model finds objects best at the size at which it
saw them in training. micro-sam's fine-tuned models saw patches of 512 px, enlarged to 1024.

References:
    Tiles of 384 px with an overlap of 64 px, on automatic segmentation:
    https://computational-cell-analytics.github.io/micro-sam/micro_sam.html#faq
    PathoSAM, trained on slides at 20 and 40 times: Griebel et al., Segment Anything for Histopathology. MIDL 2025.
    arXiv:2502.00408
    Plain SAM, which saw whole photographs: Kirillov et al., Segment Anything. ICCV 2023. arXiv:2304.02643
"""

from __future__ import annotations

from typing import NamedTuple

from slidesam.tasks.settings.methods import MicroSam

NATIVE = 1024
"""Side of the square that SAM's encoder takes, in pixels."""


class Field(NamedTuple):
    """The scale that suits a model.

    Attributes:
        side: Side of its field, in pixels of the image.
        halo: Overlap of neighbouring tiles on each side, in pixels.
        mpp: Smallest and largest pixel size of the training images, in µm; None = very different ones.
    """

    side: int
    halo: int
    mpp: tuple[float, float] | None


_FINE_TUNED, _PLAIN = Field(512, 64, None), Field(NATIVE, 128, None)
_FIELDS = {
    # As its training script does it: crops at the images' own scale.
    "nuclei-small": _PLAIN,
    "_lm": _FINE_TUNED,
    "_em_organelles": _FINE_TUNED,
    "_medical_imaging": _FINE_TUNED,
    "_histopathology": Field(512, 64, (0.2, 0.55)),
}


def find_field(settings: MicroSam, model: str) -> Field:
    """Find the scale that suits a model.

    Weights of one's own are most often fine-tuned by micro-sam, which trains on patches of 512 px; AMG is for plain SAM.

    Args:
        settings: The segmenter's settings.
        model: The model's name in micro-sam's registry.

    Example:
        >>> find_field(MicroSam(), "vit_b_lm").side, find_field(MicroSam(), "vit_b").side
        (512, 1024)
    """
    known = next((field for ending, field in _FIELDS.items() if model.endswith(ending)), None)
    if known is not None:
        return known
    is_own = settings.checkpoint is not None and settings.mode != "amg"
    return _FINE_TUNED if is_own else _PLAIN
