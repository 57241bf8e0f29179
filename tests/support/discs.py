"""Images of discs, with their labels: what small networks can be made to find."""

from __future__ import annotations

import numpy as np


def draw_discs(shape: tuple[int, int], seed: int, spacing: int = 26) -> tuple[np.ndarray, np.ndarray]:
    """An image of bright discs on a jittered lattice, (y, x, 3) uint16, and their labels, (y, x) int32."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    y, x = np.indices(shape)
    rows, columns = (range(16, side - 14, spacing) for side in shape)
    for number, centre in enumerate(((row, column) for row in rows for column in columns), 1):
        cy, cx = centre + random.integers(-3, 4, 2)
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= random.integers(7, 10) ** 2] = number
    noise = random.normal(0, 20, (*shape, 3))
    image = (1000 + 3000 * (labels > 0)[..., None] + noise).astype(np.uint16)
    return image, labels
