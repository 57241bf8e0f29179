"""micro-sam's networks made small, so that a block costs seconds instead of a minute; all around them is as it is.

Of the image encoder of SAM's ViT-B one of twelve blocks is left, a windowed one; of each stage of vit_t the first block; of
the channels of micro-sam's decoder an eighth. What reaches them, and what is made of what they say, is what slidesam's tests are
about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

# `make full-networks` sets it.
FULL = bool(os.environ.get("SLIDESAM_TEST_FULL_NETWORKS"))


def use_small_networks() -> None:
    """From now on micro-sam makes small networks in this process; not where SLIDESAM_TEST_FULL_NETWORKS is set."""
    if FULL:
        return
    import micro_sam.instance_segmentation as generators
    from micro_sam.util import sam_model_registry

    if isinstance(generators.UNETR, partial):
        return
    # micro-sam's registry is that of mobile_sam where it is installed, else of segment_anything; it is one object.
    # Both packages have a function of the module's name.
    build = sys.modules[sam_model_registry["vit_b"].__module__]._build_sam
    sam_model_registry["vit_b"] = partial(
        build, encoder_embed_dim=768, encoder_depth=1, encoder_num_heads=12, encoder_global_attn_indexes=[]
    )
    sam_model_registry["vit_t"] = partial(_build_small_vit_t, sam_model_registry["vit_t"])
    generators.UNETR = partial(generators.UNETR, initial_features=8)


def _build_small_vit_t(build: Any, checkpoint: None = None) -> Any:
    sam = build(checkpoint)
    for layer in sam.image_encoder.layers:
        del layer.blocks[1:]
    return sam


@contextmanager
def use_full_networks() -> Iterator[None]:
    """Undo `use_small_networks` for a while: real weights fit the networks of full size only."""
    import micro_sam.instance_segmentation as generators
    from micro_sam.util import sam_model_registry

    small_decoder, small_vit_t = generators.UNETR, sam_model_registry["vit_t"]
    if isinstance(small_decoder, partial):
        generators.UNETR, sam_model_registry["vit_t"] = small_decoder.func, small_vit_t.args[0]
    try:
        yield
    finally:
        generators.UNETR, sam_model_registry["vit_t"] = small_decoder, small_vit_t
