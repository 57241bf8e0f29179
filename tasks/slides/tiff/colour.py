"""Owns the conversion of a pixel's samples, as a TIFF file stores them, to the channels that are read.

`colour_rules` decides by the file's tags which `Colour` a level has; it travels with the level. Where a decoder converts, as that
of JPEG does, nothing is left to do here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

_BATCH_PIXELS = 2**18  # converted at once, so that floats of a whole region don't take memory


class Colour(BaseModel):
    """What the samples of a pixel are, and which channels they become; small and picklable."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    space: Literal["stored", "ycbcr", "cmyk", "palette"] = "stored"
    """How colours are stored: as they are read, or to be converted to red, green and blue."""
    samples: int
    """Samples of a pixel in the file."""
    colours: int
    """Channels that the colours become: 3 of RGB, otherwise all samples that aren't alpha."""
    is_rgb: bool
    """Whether the first three channels are red, green and blue."""
    is_inverted: bool = False
    """Whether the file calls 0 white; values are read as they are stored."""
    full: float
    """Value of full intensity, of a full ink, and of opaque alpha: the largest of as many bits as a sample has, 1 of floats."""
    dtype: str
    """Pixel type of the channels."""
    alpha: int | None = None
    """Number of the sample that is alpha, none if there is none."""
    is_premultiplied: bool = False
    """Whether colours are already multiplied by alpha."""
    extras: tuple[int, ...] = ()
    """Samples beside red, green and blue that are channels of their own."""
    background: float = 0.0
    """Value of what wasn't scanned, over which alpha is composed: white of red, green and blue, otherwise 0."""
    luma: tuple[float, float, float] = (0.299, 0.587, 0.114)
    """Shares of red, green and blue in the brightness of YCbCr; those of ITU-R BT.601 by default."""
    black_white: tuple[float, float, float, float, float, float] | None = None
    """Codes of black and white of Y, Cb and Cr; none for the full range."""
    palette: bytes | None = None
    """Red, green and blue of each index, 8 bits each."""
    ramp: str | None = None
    """Display colour, six hexadecimal digits, if the palette only shows numbers from black to this colour."""

    @property
    def is_converted(self) -> bool:
        """Whether samples have to be computed with, so that a channel isn't simply the sample of its number."""
        return self.space != "stored" or self.channels != self.samples or self.alpha is not None

    @property
    def channels(self) -> int:
        """Number of channels that a pixel becomes."""
        return self.colours + len(self.extras)

    def is_read_like(self, other: Colour) -> bool:
        """Whether both yield the same kind of channels, so that they can be levels of one image."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("channels", "colours", "is_rgb", "is_inverted", "dtype", "full")
        ) and (self.alpha is None) == (other.alpha is None)

    def convert(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Convert pixels.

        Args:
            samples: (y, x, sample), all samples of each pixel.

        Returns:
            (y, x, channel) of type `dtype`.
        """
        height, width = samples.shape[:2]
        out = np.empty((height, width, self.channels), self.dtype)
        rows = max(1, _BATCH_PIXELS // width)
        for y in range(0, height, rows):
            batch = samples[y : y + rows]
            out[y : y + rows, :, : self.colours] = self._compose(self._convert_colours(batch), batch)
            out[y : y + rows, :, self.colours :] = batch[..., list(self.extras)]
        return out

    def _convert_colours(self, samples: NDArray[Any]) -> NDArray[Any]:
        if self.space == "ycbcr":
            return self._round(_ycbcr_to_rgb(samples[..., :3], self.luma, self.black_white, self.full))
        if self.space == "cmyk":
            paper = np.float32(self.full) - samples[..., :4].astype(np.float32)
            return self._round(paper[..., :3] * (paper[..., 3:] / np.float32(self.full)))
        if self.space == "palette":
            assert self.palette is not None
            colours = np.frombuffer(self.palette, np.uint8).reshape(-1, 3)
            applied: NDArray[np.uint8] = colours.take(samples[..., 0].astype(np.intp), axis=0, mode="clip")
            return applied
        return samples[..., : self.colours]

    def _compose(self, colours: NDArray[Any], samples: NDArray[Any]) -> NDArray[Any]:
        """Lay colours over the background by their alpha."""
        if self.alpha is None:
            return colours
        alpha = samples[..., self.alpha, None]
        if (alpha == self.full).all():
            return colours
        if not alpha.any():
            return np.full_like(colours, self.background)
        share = np.clip(alpha / np.float64(self.full), 0, 1)  # 32 bits need float64
        over = np.minimum(colours, share * self.full) if self.is_premultiplied else colours * share
        composed = self._round(over + (1 - share) * self.background)
        # As above: a pixel's value doesn't depend on the others that are converted with it.
        background = colours.dtype.type(self.background)
        return np.where(share == 1, colours, np.where(share == 0, background, composed))

    def _round(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values in the pixel type, integers rounded and inside their range."""
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            if dtype.itemsize > 2:
                values = values.astype(np.float64)  # as float32, the largest value of 32 bits is beyond them
            values = np.clip(np.rint(values), np.iinfo(dtype).min, self.full)
        rounded: NDArray[Any] = values.astype(dtype)
        return rounded


def _ycbcr_to_rgb(
    samples: NDArray[Any], luma: Sequence[float], black_white: Sequence[float] | None, full: float
) -> NDArray[np.float32]:
    """Convert Y, Cb, Cr to red, green, blue, in the range of the samples.

    References:
        TIFF Revision 6.0 (Adobe, 1992), sections 20 (ReferenceBlackWhite) and 21 (YCbCr Images).
    """
    red, green, blue = (np.float32(share) for share in luma)
    middle = (full + 1) // 2
    ends = np.reshape(black_white or (0, full, middle, full, middle, full), (3, 2))
    ranges = np.array([full, full - middle, full - middle]) / (ends[:, 1] - ends[:, 0])
    codes = (samples - ends[:, 0].astype(np.float32)) * ranges.astype(np.float32)
    y, cb, cr = np.moveaxis(codes, -1, 0)
    # Pixel by pixel: a product of matrices may round by the number of pixels, and a part must equal the part of the whole.
    of_red, of_blue = (2 - 2 * red) * cr, (2 - 2 * blue) * cb
    rgb: NDArray[np.float32] = np.stack([y + of_red, y - (blue * of_blue + red * of_red) / green, y + of_blue], axis=-1)
    return rgb
