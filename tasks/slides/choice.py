"""Owns the choice of the image in a file that is the slide: scanners store its label, a macro photo and a thumbnail beside it.

The order of images says little. The slide is the image with the most pixels, where a name like "label" and a reduced size count
against an image, and a pyramid for it. Image 0 is taken unless another is clearly more like a slide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from slidesam.tasks.errors import SettingsError, in_one_line

_SIDE_WORD = r"(label|macro|thumb|thumbnail|overview|bar ?code|preview|map)s?"
_SIDE_IMAGE = re.compile(rf"(?<![a-z]){_SIDE_WORD}(?![a-z]|[ -]free)", re.IGNORECASE)
_OTHER_WORD = r"(slide|image|photo|picture|x|px|pixels?)"
_SIDE_DESCRIPTION = re.compile(
    rf"[\W\d_]*({_OTHER_WORD}[\W\d_]+)*{_SIDE_WORD}([\W\d_]+{_OTHER_WORD})*[\W\d_]*", re.IGNORECASE
)
# By which each property changes the number of pixels that counts. The largest macro photos have some 10 megapixels, a slide that
# is smaller than a hundredth of one isn't a scan.
_SIDE_FACTOR, _REDUCED_FACTOR, _PYRAMID_FACTOR, _FIRST_FACTOR = 0.01, 0.1, 4.0, 2.0
_MUCH_LARGER, _ABOUT_AS_LARGE = 4.0, 0.25


class ImageInFile(NamedTuple):
    """One image of a file, as the choice sees it.

    Attributes:
        name: Its name; empty if it has none.
        shape: Height and width in pixels.
        n_levels: Number of its resolutions.
        is_reduced: Whether the file says that it is a smaller copy of another image.
        folder: Name of the folder that holds it; empty if it lies in a file.
        is_described: Whether the name is a description, in which "label" and the like mean something else beside other words.
    """

    name: str
    shape: tuple[int, int]
    n_levels: int
    is_reduced: bool = False
    folder: str = ""
    is_described: bool = False

    @property
    def is_side_image(self) -> bool:
        """Whether its name says that it isn't the slide."""
        if self.is_described:
            return _SIDE_DESCRIPTION.fullmatch(self.name) is not None
        return _SIDE_IMAGE.search(self.name) is not None

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]


def choose_image(images: Sequence[ImageInFile], number: int | None, file: str) -> tuple[int, list[str]]:
    """Choose the image of a file that is the slide.

    Args:
        images: The images, in the file's order; at least one.
        number: The image that the settings ask for; none = choose.
        file: Name for messages.

    Returns:
        Its number, and remarks for people where another choice would be possible.

    Raises:
        SettingsError: There is no image of that number.

    Example:
        >>> slide, label = ImageInFile("", (4000, 3000), 1), ImageInFile("label", (400, 300), 1)
        >>> choose_image([label, slide], None, "a.tif")[0], choose_image([slide, label], None, "a.tif")
        (1, (0, []))
    """
    if number is not None and number >= len(images):
        folders = ", ".join(image.folder for image in images)
        has_others = any(_has_other_folder(image, position) for position, image in enumerate(images))
        listing = f" (folders {in_one_line(folders, 60)})" if has_others else ""
        raise SettingsError(f"setting slide.series: {file} has images 0 to {len(images) - 1}{listing}, not {number}")
    scores = [_score(image, position) for position, image in enumerate(images)]
    best = scores.index(max(scores))
    if number is not None:
        return number, _remark_on_setting(images, number)
    remarks = []
    if best:
        finding = f"{_describe(images, best)} is taken as the slide, not {_describe(images, 0)}"
        remarks.append(f"{finding}; setting slide.series chooses another")
    others = [
        other
        for other, score in enumerate(scores)
        if other != best and not images[other].is_side_image and score >= _ABOUT_AS_LARGE * scores[best]
    ]
    if others:
        listing = ", ".join(_describe(images, other) for other in others[:3]) + (", ..." if len(others) > 3 else "")
        remarks.append(
            f"it holds further large images that aren't segmented with {_describe(images, best)}: {listing}; "
            "setting slide.series chooses one"
        )
    return best, remarks


def _score(image: ImageInFile, position: int) -> float:
    factors = (
        (image.is_side_image, _SIDE_FACTOR),
        (image.is_reduced, _REDUCED_FACTOR),
        (image.n_levels > 1, _PYRAMID_FACTOR),
        (position == 0, _FIRST_FACTOR),
    )
    score = float(image.pixels)
    for is_so, factor in factors:
        score *= factor if is_so else 1
    return score


def _remark_on_setting(images: Sequence[ImageInFile], number: int) -> list[str]:
    """Say that another image is much larger than the one that the settings ask for."""
    largest = max(range(len(images)), key=lambda other: 0 if images[other].is_side_image else images[other].pixels)
    ratio = images[largest].pixels / max(images[number].pixels, 1)
    if ratio < _MUCH_LARGER or images[largest].is_side_image:
        return []
    return [
        f"{_describe(images, number)} is segmented, as setting slide.series says; {_describe(images, largest)} has "
        f"{ratio:.0f} times as many pixels"
    ]


def _describe(images: Sequence[ImageInFile], number: int) -> str:
    """Describe an image in words; of its name, which can be a patient's, only the word that says what it shows."""
    image = images[number]
    word = _SIDE_IMAGE.search(image.name) if image.is_side_image else None
    name = f"{word[0].lower()}, " if word else ""
    folder = f"folder {in_one_line(image.folder, 60)!r}, " if _has_other_folder(image, number) else ""
    height, width = image.shape
    return f"image {number} ({folder}{name}{width} × {height} px)"


def _has_other_folder(image: ImageInFile, number: int) -> bool:
    """Tell whether an image's folder isn't named by its number."""
    return image.folder not in ("", str(number))
