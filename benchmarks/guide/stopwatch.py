"""How long micro-sam spends in its encoder, its decoders and around them: its methods are wrapped for as long as one watches.

Seconds are exclusive: what a wrapped method spends in another counts for that one. On CUDA, where calls return before the work is
done, the device is waited for at both ends of each.
"""

from __future__ import annotations

import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENCODER, DECODER, POST = "encoder", "decoder", "post-processing"


class Stopwatch:
    """Seconds by stage.

    Attributes:
        seconds: By stage, since the last `take`.
        calls: How often each was called; of the encoder, how many images it was given.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        # Seconds of the wrapped calls inside each that is running.
        self._inside: list[float] = []

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """What was counted, to begin anew."""
        found = dict(self.seconds), dict(self.calls)
        self.seconds.clear()
        self.calls.clear()
        return found

    def wrapped(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method that is timed."""

        def timed(owner: Any, *arguments: Any, **named: Any) -> Any:
            synchronize()
            self._inside.append(0.0)
            started = time.perf_counter()
            try:
                return method(owner, *arguments, **named)
            finally:
                synchronize()
                spent = time.perf_counter() - started
                self.seconds[stage] += spent - self._inside.pop()
                self.calls[stage] += len(arguments[0]) if stage == ENCODER else 1
                if self._inside:
                    self._inside[-1] += spent

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wraps micro-sam's methods."""
        places = _places()
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
        for owner, name, stage in places:
            setattr(owner, name, self.wrapped(stage, owner.__dict__[name]))
        try:
            yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)


def synchronize() -> None:
    """Waits until the device has done what it was told."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _places() -> list[tuple[type, str, str]]:
    """Classes, their methods and the stage that each belongs to."""
    from micro_sam import instance_segmentation as generators
    from micro_sam.util import SamPredictor

    # mobile_sam where it is installed, else segment_anything, which has no TinyViT.
    networks = importlib.import_module(f"{SamPredictor.__module__.partition('.')[0]}.modeling")
    encoders = [getattr(networks, name) for name in ("ImageEncoderViT", "TinyViT") if hasattr(networks, name)]
    places: list[tuple[type, str, str]] = [
        *((encoder, "forward", ENCODER) for encoder in encoders),
        (generators.DecoderAdapter, "_forward_impl", DECODER),
        (SamPredictor, "predict_torch", DECODER),
    ]
    kinds = ("AutomaticMaskGenerator", "InstanceSegmentationWithDecoder", "AutomaticPromptGenerator")
    for kind in (*kinds, *(f"Tiled{kind}" for kind in kinds)):
        owner = getattr(generators, kind)
        places += [(owner, name, POST) for name in ("initialize", "generate") if name in owner.__dict__]
    return places
