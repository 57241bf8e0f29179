"""Cut a block into tiles that SAM sees at one scale: each covers one whole field, the last ones are shifted inwards.

micro-sam's own cutting clips tiles at the rim of a block, and SAM then enlarges what is left more than the tiles inside.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from slidesam.tasks.settings.types import Pair


class Box(NamedTuple):
    """A rectangle, as micro-sam's code reads it."""

    begin: list[int]
    end: list[int]

    @property
    def shape(self) -> list[int]:
        """Height and width."""
        return [end - begin for begin, end in zip(self.begin, self.end, strict=True)]


class Tile(NamedTuple):
    """A tile: with its overlap, alone, and alone as seen from the corner of the whole."""

    outer_block: Box
    inner_block: Box
    inner_block_local: Box


class EvenTiling:
    """The tiles of an image, with the interface of the `Blocking` that micro-sam cuts by.

    Along an axis that is longer than the field, fields begin a tile apart, and the last one ends with the image. Where two of
    them meet, each keeps an overlap of at least the halo; the last one gets no more than the others leave. So images whose
    begins are whole tiles apart have the same tiles where they overlap. Along a shorter axis there is one tile.

    Args:
        shape: Height and width of the image, in pixels.
        tile_shape: Height and width of a tile.
        halo: Overlap on each side.

    Example:
        >>> tiling = EvenTiling((512, 1000), (384, 384), (64, 64))
        >>> [tiling.get_block_with_halo(tile).outer_block.begin for tile in range(tiling.number_of_blocks)]
        [[0, 0], [0, 384], [0, 488]]
    """

    def __init__(self, shape: Pair, tile_shape: Pair, halo: Pair) -> None:
        self._axes = [_cut_axis(*sizes) for sizes in zip(shape, tile_shape, halo, strict=True)]

    @property
    def number_of_blocks(self) -> int:
        """How many tiles there are; they are numbered by rows."""
        return len(self._axes[0]) * len(self._axes[1])

    def get_block_with_halo(self, tile: int, halo: object = None) -> Tile:
        """Return a tile by its number; its overlap is the tiling's own."""
        return self._tiles[tile]

    def coordinates_to_block_id(self, position: list[int]) -> int:
        """Return the number of the tile that a pixel (y, x) belongs to."""
        row, column = (
            next(number for number, span in enumerate(axis) if coordinate < span.inner[1])
            for axis, coordinate in zip(self._axes, position, strict=True)
        )
        return row * len(self._axes[1]) + column

    @cached_property
    def _tiles(self) -> list[Tile]:
        return [_join(row, column) for row in self._axes[0] for column in self._axes[1]]


class _Span(NamedTuple):
    outer: tuple[int, int]
    inner: tuple[int, int]


def _cut_axis(length: int, tile: int, halo: int) -> list[_Span]:
    field = tile + 2 * halo
    if length <= field:
        return [_Span((0, length), (0, length))]
    begins = [*range(0, length - field, tile), length - field]
    cuts = [0, *(begin + tile + halo for begin in begins[:-1]), length]
    return [_Span((begin, begin + field), (cuts[number], cuts[number + 1])) for number, begin in enumerate(begins)]


def _join(row: _Span, column: _Span) -> Tile:
    outer, inner = (
        Box([spans[0][0], spans[1][0]], [spans[0][1], spans[1][1]]) for spans in zip(row, column, strict=True)
    )
    local = Box(*([inner_at - corner for inner_at, corner in zip(at, outer.begin, strict=True)] for at in inner))
    return Tile(outer, inner, local)
