"""Tries a segmenter on one block of a slide, and draws what it finds.

    python try_block.py SLIDE --set segmenter.kind=function --set segmenter.target=own_segmenter:BrightSpots

Takes the same settings as `slidesam segment`. The slide's parameters are found as in a run, from all over the slide.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy import ndimage

import slidesam


def main():
    """Segments one block in this process, without a cluster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--block", type=int, help="number of the block; without it, one in the middle of the tissue")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changed")
    parser.add_argument("--output", type=Path, default=Path("try-block"), help="folder for the picture")
    chosen = parser.parse_args()

    settings = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in chosen.changed)}
    tried = slidesam.segment_block(chosen.slide, chosen.output, settings, chosen.block)
    number = tried.block.block_id
    picture = chosen.output / f"block-{number}.png"
    Image.fromarray(with_outlines(tried.image, tried.labels)).save(picture)
    found = f"{tried.labels.max()} objects, parameters {tried.params}"
    print(f"block {number} of {tried.n_blocks}: {found}, picture {picture}")


def with_outlines(pixels, labels):
    """(y, x, 3) uint8: the pixels, and the objects' borders in green.

    Args:
        pixels: (y, x, c) any numeric dtype.
        labels: (y, x) integers.
    """
    grey = pixels[..., : 3 if pixels.shape[2] >= 3 else 1].astype(np.float32)
    low, high = np.percentile(grey, (0.5, 99.8))
    shown = np.clip(255 * (grey - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    shown = np.broadcast_to(shown, (*labels.shape, 3)).copy()
    border = ndimage.grey_dilation(labels, size=(3, 3)) != ndimage.grey_erosion(labels, size=(3, 3))
    shown[border] = (0, 255, 0)
    return shown


if __name__ == "__main__":
    main()
