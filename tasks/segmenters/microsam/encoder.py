"""Compute SAM's image embeddings: in batches of tiles, kept on the device, in the form that micro-sam's generators take.

The result equals that of micro-sam's `precompute_image_embeddings`, with these differences:

- pixels are 8 bit already, so micro-sam's contrast stretch is left out;
- several tiles go through the encoder at once, fewer if memory doesn't suffice. The encoder is in eval mode, so tiles of one
  batch don't influence each other; micro-sam's decoder isn't, and takes tiles one by one;
- the encoder may compute in bfloat16;
- embeddings stay on the device. micro-sam copies each to the host and back: 4 MB per tile.

Importing this module loads no torch; making an `Encoder` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.settings.types import Pair

Pixels = NDArray[np.uint8]


class Encoder:
    """SAM's image encoder.

    Args:
        predictor: micro-sam's predictor, which holds the model.
        batch_size: How many tiles at once, at most.
        precision: float32, bfloat16, or auto (bfloat16 on a GPU that supports it).

    Attributes:
        batch_size: How many tiles it takes at once now: fewer than asked for if memory didn't suffice.
        precision: float32 or bfloat16.
    """

    def __init__(self, predictor: Any, batch_size: int, precision: str) -> None:
        import torch

        self._predictor = predictor
        self._device = torch.device(predictor.device).type
        self.batch_size = batch_size
        has_bfloat16 = self._device == "cuda" and torch.cuda.is_bf16_supported()
        self.precision = ("bfloat16" if has_bfloat16 else "float32") if precision == "auto" else precision

    def encode_image(self, rgb: Pixels) -> dict[str, Any]:
        """Compute the embedding of one image: (y, x, 3) uint8 → (1, 256, 64, 64) float32, with the sizes of the image."""
        (features,) = self._encode([rgb])
        return library.describe_image(features)

    def encode_tiles(
        self, shape: Pair, tile_shape: Pair, halo: Pair, pixels: Callable[[tuple[slice, slice]], Pixels]
    ) -> dict[str, Any]:
        """Compute the embeddings of an image's tiles.

        Args:
            shape: Height and width of the image.
            tile_shape: Height and width of its tiles.
            halo: Their overlap on each side.
            pixels: Returns (y, x, 3) uint8 of a place in the image; called for each tile when it is needed.
        """
        places = library.place_tiles(shape, tile_shape, halo)
        embeddings: list[Any] = []
        while len(embeddings) < len(places):
            batch = places[len(embeddings) : len(embeddings) + self.batch_size]
            embeddings += self._encode([pixels(place) for place in batch])
        return library.describe_tiles(embeddings, shape, tile_shape, halo)

    def _encode(self, images: Sequence[Pixels]) -> list[Any]:
        """Compute the embedding of each image; if memory doesn't suffice, continue with half as many at once.

        Raises:
            SegmenterError: Memory doesn't suffice for one image.
        """
        import torch

        embeddings: list[Any] = []
        while len(embeddings) < len(images):
            batch = images[len(embeddings) : len(embeddings) + self.batch_size]
            try:
                embeddings += self._encode_batch(batch)
                continue
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise SegmenterError(
                        f"the {self._device} device has too little memory for a single tile",
                        "give it fewer workers, or take a smaller model (segmenter.model vit_b_...)",
                    ) from error
            # Outside of the handler, because its traceback holds the memory that is to be freed.
            if self._device == "cuda":
                torch.cuda.empty_cache()
            self.batch_size = len(batch) // 2
        return embeddings

    def _encode_batch(self, images: Sequence[Pixels]) -> list[Any]:
        import torch

        predictor, batch, sizes = self._predictor, [], []
        for image in images:
            scaled = predictor.transform.apply_image(np.ascontiguousarray(image))
            tensor = torch.as_tensor(scaled, device=predictor.device).permute(2, 0, 1).contiguous()[None]
            sizes.append({"input_size": tuple(tensor.shape[-2:]), "original_size": image.shape[:2]})
            batch.append(predictor.model.preprocess(tensor))
        with self._use_precision():
            features = predictor.model.image_encoder(torch.cat(batch)).float()
        embeddings = list(features.split(1))
        for embedding, attrs in zip(embeddings, sizes, strict=True):
            embedding.attrs = attrs
        return embeddings

    @contextlib.contextmanager
    def _use_precision(self) -> Iterator[None]:
        import torch

        with torch.autocast(self._device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
