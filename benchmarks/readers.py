"""Whether other packages read what a run writes: AnnData by scanpy, SpatialData by spatialdata, outlines by geopandas and duckdb.

They are in an environment of their own, because spatialdata takes dask back on Python 3.11. A made slide is segmented and written
in all formats here; `benchmarks/read_results.py` reads them there.

    make readers        (or: .venv/bin/python -m benchmarks.readers [--environment .venv-readers])

Ends with 0 if all is as it should be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

import slidesam

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("duckdb", "geopandas", "scanpy", "spatialdata>=0.7")
SIDE = 1024


def main() -> None:
    """Makes the environment where it isn't there, and checks in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-readers")
    parser.add_argument("--python", default="3.11", help="of a new environment")
    chosen = parser.parse_args()
    python = make_environment(chosen.environment.resolve(), chosen.python)
    script = ROOT / "benchmarks" / "read_results.py"
    codes = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("bright field", "fluorescence"):
            folder = Path(scratch, kind.replace(" ", "-"))
            folder.mkdir()
            print(f"{kind}:", flush=True)
            write_results(folder, is_bright_field=kind == "bright field")
            codes.append(subprocess.run([python, "-W", "ignore", script, folder / "out"], check=False).returncode)
    sys.exit(max(codes))


def make_environment(folder: Path, python: str) -> Path:
    """Its Python, with the packages of the readers."""
    executable, uv = folder / "bin" / "python", str(Path(sys.executable).with_name("uv"))
    if not (folder / ".installed").exists():
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(executable), *PACKAGES], check=True)
        (folder / ".installed").touch()
    return executable


def write_results(folder: Path, *, is_bright_field: bool) -> None:
    """Segment a slide of discs, and write its objects in all formats; labels and area sums are noted for the reader."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    radii, greys = (rng.integers(*ends, (SIDE // 48 + 1, SIDE // 48 + 1)) for ends in ((9, 17), (70, 120)))
    is_disc = (y % 48 - 24) ** 2 + (x % 48 - 24) ** 2 < radii[y // 48, x // 48] ** 2
    image = np.where(is_disc, greys[y // 48, x // 48], 235).astype(np.uint8)
    if is_bright_field:
        pixels, options = np.stack([image, image // 2 + 60, image], axis=-1), {"photometric": "rgb"}
    else:
        pixels, options = 255 - image, {}
    tifffile.imwrite(folder / "discs.tif", pixels, tile=(256, 256), **options)
    settings = {
        "segmenter.kind": "watershed", "segmenter.diameter": 28, "blocks.block_shape": 256, "blocks.halo": 64,
        "slide.mpp": 0.5, "output.formats": ["table", "outlines", "geoparquet", "anndata", "spatialdata"],
    }  # fmt: skip
    result = slidesam.segment(folder / "discs.tif", folder / "out", settings, progress=False)
    np.save(folder / "out" / "labels.npy", np.asarray(result.labels[:, :]))


if __name__ == "__main__":
    main()
