"""List the packages whose versions decide a segmenter's labels, without importing any of them.

If one is upgraded in the middle of a slide, the rest of its blocks would be computed by another method than the first; so their
versions are part of the fingerprint.
"""

from __future__ import annotations

import importlib.metadata

from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, SegmenterSettings, StarDist, Watershed

# Of which one project is published under several names.
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_SEGMENT_ANYTHING = ("segment-anything", "segment-anything-py")
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tensorflow-rocm")
# If it is installed, micro-sam takes all its networks from it; it computes with timm.
_MOBILE_SAM = ("mobile-sam", "mobilesam-mirror", "timm")
# imagecodecs decides what a compressed tile's pixels are; NumPy and SciPy average, resample and find tissue.
_ALWAYS = ("numpy", "scipy", "imagecodecs", "slidesam")


def describe_versions(settings: SegmenterSettings) -> list[str]:
    """Describe the versions of all installed packages that labels depend on.

    Args:
        settings: The segmenter.

    Returns:
        Such as "torch 2.15.0", the method's own packages first; a package that isn't installed is left out.
    """
    versions = {name: package_version(name) for name in (*_list_packages(settings), *_ALWAYS)}
    return [f"{name} {version}" for name, version in versions.items() if version is not None]


def _list_packages(settings: SegmenterSettings) -> tuple[str, ...]:
    match settings:
        case MicroSam():
            # SAM's images are scaled by torchvision and Pillow; torch-em, python-elf and bioimage-cpp make labels.
            methods = ("torch", "torchvision", "pillow", "torch-em", "python-elf", "bioimage-cpp", "scikit-image")
            mobile = _MOBILE_SAM if any(map(package_version, _MOBILE_SAM[:2])) else ()
            opencv = _OPENCV if settings.options.get("min_mask_region_area") else ()
            classifier = ("scikit-learn",) if settings.classes == "objects" else ()
            return ("micro-sam", *methods, *_SEGMENT_ANYTHING, *mobile, *opencv, *classifier)
        case Watershed():
            return ("scikit-image",)
        case Cellpose():
            return ("cellpose", "torch", "torchvision", *_SEGMENT_ANYTHING, *_OPENCV, "fastremap", "fill-voids")
        case StarDist():
            return ("stardist", "csbdeep", *_TENSORFLOW, "keras", "scikit-image")
        case Function():
            # The installed package that has the name of the function's module, if there is one.
            return (settings.target.partition(":")[0].partition(".")[0],)


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_versions(identity: str) -> dict[str, str]:
    """Read the versions of packages, by name, from a segmenter's identity: what follows the method itself.

    Example:
        >>> read_versions("watershed, scikit-image 0.26.0, numpy 2.4.6")
        {'scikit-image': '0.26.0', 'numpy': '2.4.6'}
    """
    return dict(entry.rpartition(" ")[::2] for entry in identity.split(", ")[1:])


def describe_differences(old: str, new: str) -> str:
    """Describe how two identities differ: of weights and sources that they do, of packages their versions.

    Example:
        >>> describe_differences("vit_b sha256:12, torch 2.14, numpy 2.3", "vit_b sha256:12, torch 2.15, numpy 2.3, pillow 13.0")
        'torch was 2.14, is 2.15; pillow was none, is 13.0'
    """
    old_method, new_method = (identity.partition(", ")[0] for identity in (old, new))
    lines = [] if old_method == new_method else [f"{old_method} became {new_method}"]
    old_versions, new_versions = read_versions(old), read_versions(new)
    for name in new_versions | old_versions:
        before, now = (versions.get(name, "none") for versions in (old_versions, new_versions))
        if before != now:
            lines.append(f"{name} was {before}, is {now}")
    return "; ".join(lines)
