"""What a segmentation method has to offer, and what it gets for free.

A segmenter decides from what it is given and from `params`, which are the same for every block of a slide. So two blocks that
read the same pixels agree on them.

    prepare(sample, slide)   -> params      once per slide, from a sample of it: a JSON mapping (thresholds, ranges, ...)
    segment(image, params)   -> labels      per block: (y, x[, c]) of the grid's `outer_shape` -> (y, x) integers, 0 = background
    begin(image, params)     -> deferred    the device's part of `segment`; deferred() -> labels, or labels with classes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.segmenters.votes import ClassifiedLabels

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

Params = Mapping[str, Any]
DeferredLabels = Callable[[], NDArray[np.integer[Any]] | ClassifiedLabels]


@dataclass(frozen=True)
class Arithmetic:
    """How a network computed a block; it may change the last bits of its output, so the block's mark keeps it."""

    precision: str
    """float32 or bfloat16."""
    batch_size: int
    """How many tiles the network took at once, as far as memory sufficed."""


class Segmenter(ABC):
    """A segmentation method.

    Attributes:
        device: Where it computes (cpu, cuda, mps): noted with each block. While a GPU computes one block, the last is finished.
        reused_seconds: How long computing took what the last call of `segment` took over from a variant's call.
    """

    device: str = "cpu"
    reused_seconds: float = 0.0

    @property
    def arithmetic(self) -> Arithmetic | None:
        """How its network computes; None for methods to which that doesn't apply."""
        return None

    def has_bright_background(self, slide: Slide) -> bool:
        """Whether what surrounds objects is bright, so that the slide is padded with it: by default, if it is in bright field."""
        return slide.is_rgb

    def suggest_trials(self, params: Params) -> list[dict[str, list[Any]]]:
        """Suggest which settings are worth trying on a slide.

        Args:
            params: What `prepare` returned for it.

        Returns:
            Grids of values by the settings' dotted names: of each grid all combinations are tried. `[{}]` = none.
        """
        return [{}]

    def vary(self, settings: Any) -> Segmenter | None:
        """Return a segmenter with other settings that takes over what this one computed of the same images, for trials.

        Args:
            settings: The segmenter's settings, of the same kind.

        Returns:
            The segmenter, whose `prepare` would find what this one's does; None = it has to be made as any other.
        """
        return None

    def measure_work(self, shape: tuple[int, int]) -> float:
        """Return how much work an image of this height and width is, compared with others: by default its number of pixels."""
        return float(shape[0] * shape[1])

    @abstractmethod
    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Find the slide-wide parameters.

        Args:
            sample: (y, x[, c]) pixels of the slide at full resolution, with the channels that `segment` will get: the whole
                slide, or many places of a large one put together. Its pixels count, not where they lie. All are numbers:
                pixels without data are left out.
            slide: Facts on the slide (pixel size, channels, dtype).

        Returns:
            Mapping that JSON can hold, given to each `segment`.
        """

    @abstractmethod
    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Label one block.

        Args:
            image: (y, x[, c]) pixels of the outer region in the slide's dtype; (y, x) if one channel was chosen. All are
                numbers: background stands where there are no data.
            params: What `prepare` returned.

        Returns:
            (y, x) integers, one positive number per object, 0 = background.
        """

    def begin(self, image: NDArray[Any], params: Params) -> DeferredLabels:
        """Do the device's part of `segment`, and return the host's part for later.

        A two-phase segmenter overrides this, so that the device can begin the next block while the host finishes this one.
        By default nothing is left for later.

        Args:
            image: As `segment` takes it.
            params: What `prepare` returned.

        Returns:
            A function that returns the labels, with votes on the objects' classes where there are any. It is called once,
            perhaps in another thread while `begin` computes the next block. So it must not share changing data with `begin`.
        """
        # Popped, so that the function doesn't keep the labels once it has returned them.
        return [self.segment(image, params)].pop
