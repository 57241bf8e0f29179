"""The background colour of a slide: one value per channel, taken from its overview."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.pixels.percentiles import nearest_percentiles


def background_of(overview: NDArray[Any], *, is_rgb: bool) -> NDArray[Any]:
    """Estimate the background colour of a slide, which its edge blocks are padded with.

    Args:
        overview: (y, x, c) coarse image.
        is_rgb: Whether background is bright (glass) rather than dark.

    Returns:
        (c,) in the overview's dtype: per channel the 99th percentile in bright field, else the 1st.
    """
    percents = (99,) if is_rgb else (1,)
    levels = [nearest_percentiles(overview[..., channel], percents)[0] for channel in range(overview.shape[2])]
    return np.asarray(levels, overview.dtype)
