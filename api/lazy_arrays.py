"""Arrays that are read as they are indexed: labels and pixels of a slide that need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.store.multiscales import LevelPlace

Index = int | slice | EllipsisType
FINEST = LevelPlace((1.0, 1.0), (0.0, 0.0))


class LazyArray:
    """One level of a slide as a read-only array; indexing reads only the pixels that are asked for.

    Args:
        shape: Height and width, and the number of channels where there are several.
        dtype: Type of the pixels.
        read: Reads a region as (y, x) or (y, x, c).
        place: Where its pixels lie.
        coarser: The levels above, finest first.

    Attributes:
        place: Pixel (i, j) has its centre at `place.first + (i, j) * place.step`, in pixels of level 0 along y and x.

    Example:
        >>> plane = np.arange(12).reshape(3, 4)
        >>> lazy = LazyArray(plane.shape, plane.dtype, lambda region: plane[region.slices])
        >>> lazy[1:, 2], lazy[-1, ::2], lazy.shape
        (array([ 6, 10]), array([ 8, 10]), (3, 4))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        read: Callable[[Region], NDArray[Any]],
        place: LevelPlace = FINEST,
        coarser: tuple[LazyArray, ...] = (),
    ) -> None:
        self.shape, self.dtype, self.place = tuple(shape), np.dtype(dtype), place
        self._read, self._coarser = read, coarser

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def levels(self) -> tuple[LazyArray, ...]:
        """This level and the coarser ones."""
        return (self, *self._coarser)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype}, levels={len(self.levels)})"

    def __getitem__(self, index: Index | tuple[Index, ...]) -> NDArray[Any]:
        """Read pixels.

        Args:
            index: Integers, slices and an ellipsis, as NumPy's basic indexing takes them.

        Raises:
            IndexError: It is another kind of index, or outside.
        """
        y, x, *other_axes = self._per_axis(index)
        (y0, y1, own_y), (x0, x1, own_x) = (_bounds(at, size) for at, size in zip((y, x), self.shape, strict=False))
        pixels = self._read(Region(y0, x0, y1, x1)) if y1 > y0 and x1 > x0 else self._empty(y1 - y0, x1 - x0)
        return pixels[(own_y, own_x, *other_axes)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the pixels are on disk: they can't be had without a copy")
        return self[:, :].astype(self.dtype if dtype is None else dtype, copy=False)

    def _empty(self, height: int, width: int) -> NDArray[Any]:
        return np.zeros((height, width, *self.shape[2:]), self.dtype)

    def _per_axis(self, index: Index | tuple[Index, ...]) -> list[int | slice]:
        """Return one integer or slice for each axis."""
        indices = index if isinstance(index, tuple) else (index,)
        if any(not isinstance(at, int | np.integer | slice | EllipsisType) or isinstance(at, bool) for at in indices):
            raise IndexError(
                f"index {index!r}: only integers, slices and ... can be used; read first, then index further"
            )
        if indices.count(...) > 1 or len(indices) - indices.count(...) > self.ndim:
            raise IndexError(f"index {index!r} has too many axes for {self.ndim}")
        at = indices.index(...) if ... in indices else len(indices)
        missing = (slice(None),) * (self.ndim - len(indices) + indices.count(...))
        return [*indices[:at], *missing, *indices[at + 1 :]]  # type: ignore[list-item]


def _bounds(at: int | slice, size: int) -> tuple[int, int, int | slice]:
    """Return the first and last pixel to read along an axis, and what to take of these.

    Raises:
        IndexError: The index is outside.
    """
    if not isinstance(at, slice):
        number = range(size)[at]
        return number, number + 1, 0
    taken = range(size)[at]
    if not taken:
        return 0, 0, slice(0, 0)
    low, high = min(taken[0], taken[-1]), max(taken[0], taken[-1])
    # Read from the lowest to the highest; a negative step starts at the highest, which is the last that was read.
    return low, high + 1, slice(None, None, taken.step)
