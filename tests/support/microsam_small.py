"""micro-sam's networks made small, so that a block costs seconds instead of a minute; all around them is as it is.

Of the image encoder of SAM's ViT-B one of twelve blocks is left, a windowed one, and of the channels of micro-sam's decoder an
eighth. What reaches them, and what is made of what they say, is what slidesam's tests are about.
"""

from __future__ import annotations

import os
import sys
from functools import partial

# `make full-networks` sets it.
FULL = bool(os.environ.get("SLIDESAM_TEST_FULL_NETWORKS"))


def use_small_networks() -> None:
    """From now on micro-sam makes small networks in this process; not where SLIDESAM_TEST_FULL_NETWORKS is set."""
    if FULL:
        return
    import micro_sam.instance_segmentation as generators
    from segment_anything import sam_model_registry

    # The package has a function of the module's name.
    build = sys.modules["segment_anything.build_sam"]._build_sam
    # The registry is one object, which micro_sam has too.
    sam_model_registry["vit_b"] = partial(
        build, encoder_embed_dim=768, encoder_depth=1, encoder_num_heads=12, encoder_global_attn_indexes=[]
    )
    if not isinstance(generators.UNETR, partial):
        generators.UNETR = partial(generators.UNETR, initial_features=8)
