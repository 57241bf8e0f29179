"""Bright spots by a threshold: a segmentation method of one's own, once as a function and once as a class.

It needs nothing of slidesam, and can be tried on any array.
"""

import numpy as np
from scipy import ndimage


def bright_spots(image, threshold=1000.0, sigma=1.5, min_area=12):
    """Labels of what is brighter than a threshold.

    Args:
        image: (y, x[, c]) pixels of a block and its halo, in the slide's dtype; (y, x) where there is one channel.
        threshold: Intensity above which a smoothed pixel belongs to an object; the same for every block.
        sigma: Of the smoothing, in pixels.
        min_area: Pixels below which an object is dropped.

    Returns:
        (y, x) integers: one positive number per object, 0 = background.
    """
    labels, count = ndimage.label(smoothed(image, sigma) > threshold)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    keep[0] = False
    return np.where(keep[labels], labels, 0)


class BrightSpots:
    """The same, with a threshold that it finds by itself, once for the whole slide.

    Args:
        sigma: Of the smoothing, in pixels.
        min_diameter: Of an object, in µm (in pixels where the slide has no pixel size).

    Attributes:
        device: Where it computes, noted with each block. Optional.
    """

    device = "cpu"

    def __init__(self, sigma=1.5, min_diameter=2.0):
        # What takes long belongs here: a process makes its segmenter once. Import torch here, too, not above.
        self.sigma = sigma
        self.min_diameter = min_diameter

    def prepare(self, sample, slide):
        """What all blocks share.

        Args:
            sample: (y, x[, c]) pixels from all over the slide, with the channels that `segment` gets.
            slide: Facts: `slide.mpp` is None or (y, x) in µm per pixel, `slide.is_rgb`, `slide.channel_names`, ...

        Returns:
            What JSON can hold: numbers, texts, lists, no NumPy. It is kept, and given to every `segment`.
        """
        low, high = np.percentile(smoothed(sample, self.sigma), (1, 99.9))
        pixel = slide.mpp[0] if slide.mpp else 1.0
        area = np.pi / 4 * (self.min_diameter / pixel) ** 2
        return {"threshold": float((low + high) / 2), "min_area": float(area)}

    def segment(self, image, params):
        """Labels of one block; `image` and the result are as in `bright_spots`, `params` is what `prepare` returned.

        Threads of one worker may call it at once: with a network, take a lock around it.
        """
        return bright_spots(image, params["threshold"], self.sigma, params["min_area"])


def smoothed(image, sigma):
    """(y, x) float32, the channels' mean."""
    grey = image.astype(np.float32)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    return ndimage.gaussian_filter(grey, sigma)
