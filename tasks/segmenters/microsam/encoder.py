"""SAM's image embeddings: tiles in batches, kept where they were computed, in the form that micro-sam's generators take.

What micro-sam's `precompute_image_embeddings` returns, computed in the same way, but

- pixels come as they are to be seen, past micro-sam's own stretch;
- several tiles go through the encoder at once, fewer where memory doesn't suffice (the encoder is in eval mode, so that tiles of
  one batch don't influence each other; its decoder isn't, and takes them one by one);
- the encoder may compute in bfloat16;
- embeddings stay on the device. micro-sam copies each to the host and back: 4 MB a tile.

torch and micro_sam are imported by those who call this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.settings.types import Pair

Pixels = NDArray[np.uint8]


class TileFeatures(dict[str, Any]):
    """Embeddings by the tile's number, with `attrs`: what micro-sam keeps in a Zarr group."""

    def __init__(self, attrs: dict[str, Any]) -> None:
        super().__init__()
        self.attrs = attrs


class Encoder:
    """SAM's image encoder.

    Args:
        predictor: micro-sam's predictor, which holds the model.
        batch_size: How many tiles at once, at most.
        precision: float32, bfloat16, or auto: bfloat16 on a GPU that has it.

    Attributes:
        batch_size: How many tiles it takes at once by now: fewer than asked for where memory didn't suffice.
        precision: float32 or bfloat16.
    """

    def __init__(self, predictor: Any, batch_size: int, precision: str) -> None:
        import torch

        self._predictor = predictor
        self._device = torch.device(predictor.device).type
        self.batch_size = batch_size
        has_bfloat16 = self._device == "cuda" and torch.cuda.is_bf16_supported()
        self.precision = ("bfloat16" if has_bfloat16 else "float32") if precision == "auto" else precision

    def whole(self, rgb: Pixels) -> dict[str, Any]:
        """Embeddings of one image: (y, x, 3) uint8 → (1, 256, 64, 64) float32, and the sizes that lead back to pixels."""
        (features,) = self._encode([rgb])
        return {"features": features, **features.attrs}

    def tiled(
        self, shape: Pair, tile_shape: Pair, halo: Pair, pixels: Callable[[tuple[slice, slice]], Pixels]
    ) -> dict[str, Any]:
        """Embeddings of an image's tiles.

        Args:
            shape: Height and width of the image.
            tile_shape: Height and width of its tiles.
            halo: Their overlap on each side.
            pixels: (y, x, 3) uint8 of a place of the image; tiles are asked for as they are needed.
        """
        from micro_sam.util import Blocking

        tiling = Blocking([0, 0], shape, tile_shape)
        blocks = (tiling.get_block_with_halo(tile, list(halo)).outer_block for tile in range(tiling.number_of_blocks))
        places = [tuple(slice(*ends) for ends in zip(block.begin, block.end, strict=True)) for block in blocks]
        features = TileFeatures({"shape": shape, "tile_shape": tile_shape, "halo": halo})
        for place in range(len(places)):
            if str(place) in features:
                continue
            batch = places[place : place + self.batch_size]
            found = self._encode([pixels((rows, columns)) for rows, columns in batch])
            features.update({str(place + number): each for number, each in enumerate(found)})
        return {"features": features, "input_size": None, "original_size": None}

    def _encode(self, images: Sequence[Pixels]) -> list[Any]:
        """Embeddings of each; from where memory didn't suffice on, of half as many at once.

        Raises:
            SegmenterError: It doesn't suffice for one.
        """
        import torch

        found: list[Any] = []
        while len(found) < len(images):
            batch = images[len(found) : len(found) + self.batch_size]
            try:
                found += self._encode_at_once(batch)
                continue
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise SegmenterError(
                        f"the {self._device} device has too little memory for a single tile",
                        "give it fewer workers, or take a smaller model (segmenter.model vit_b_...)",
                    ) from error
            # Outside of the handler, whose traceback holds what is to be freed.
            if self._device == "cuda":
                torch.cuda.empty_cache()
            self.batch_size = len(batch) // 2
        return found

    def _encode_at_once(self, images: Sequence[Pixels]) -> list[Any]:
        import torch

        predictor, batch, sizes = self._predictor, [], []
        for image in images:
            scaled = predictor.transform.apply_image(np.ascontiguousarray(image))
            tensor = torch.as_tensor(scaled, device=predictor.device).permute(2, 0, 1).contiguous()[None]
            sizes.append({"input_size": tuple(tensor.shape[-2:]), "original_size": image.shape[:2]})
            batch.append(predictor.model.preprocess(tensor))
        with self._in_precision():
            features = predictor.model.image_encoder(torch.cat(batch)).float()
        found = list(features.split(1))
        for each, size in zip(found, sizes, strict=True):
            each.attrs = size
        return found

    @contextlib.contextmanager
    def _in_precision(self) -> Iterator[None]:
        import torch

        with torch.autocast(self._device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
