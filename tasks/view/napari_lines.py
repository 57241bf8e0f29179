"""Write lines of Python that open a result in napari."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_LINES = """\
# napari with a window comes by: pip install "napari[all]"
import dask.array as da
import napari
import slidesam


def open_levels(array):
    return [da.from_array(level, chunks=(1024, 1024, *level.shape[2:]), name=False) for level in array.levels]


viewer = napari.Viewer(title={title!r})
"""
_IMAGE = """\
result = slidesam.open_result({store!r}, label={label!r})
scale = result.slide.mpp or (1, 1)  # micrometres per pixel
if result.slide.is_rgb:
    viewer.add_image(open_levels(result.image), name=result.name, rgb=True, scale=scale)
else:
    names = list(result.slide.channel_names)
    viewer.add_image(open_levels(result.image), name=names, channel_axis=2, scale=scale)
"""
_LABELS = """\
result = slidesam.open_result({store!r}, label={label!r})
viewer.add_labels(open_levels(result.labels), name=result.label, scale=scale)
"""


def write_napari_lines(store: Path, labels: Iterable[str]) -> str:
    """Write lines that show a result's image, as fine as it is to be had, and label images in napari.

    Pixels are read as they are shown, from the store or from the slide itself.

    Args:
        store: `<name>.ome.zarr` in an output folder, absolute.
        labels: Names of its finished label images, at least one.
    """
    names, place = list(labels), str(store)
    image = _IMAGE.format(store=place, label=names[0])
    shown = "".join(_LABELS.format(store=place, label=name) for name in names)
    return f"{_LINES.format(title=store.name)}{image}{shown}napari.run()\n"
