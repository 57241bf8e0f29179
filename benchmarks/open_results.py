"""Which programs open a result: OME-Zarr 0.5 and 0.4, image and labels, each program outside of slidesam's environment.

A slide is made, converted and segmented with both settings of `image.ome_zarr`. "yes" means that level 0 of the first channel,
or of the labels, is what slidesam wrote, pixel by pixel. neuroglancer draws in Chromium; its picture has to have many colours.

The environment, `.venv-open`, is made by this script: pip's packages, and npm's where there is Node. What isn't there is said.

    make open-results       (or: .venv/bin/python -m benchmarks.open_results)
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("zarr", "ome-zarr", "napari", "napari-ome-zarr", "ome-zarr-models", "ngff-zarr", "neuroglancer")
NODE_PACKAGES = ("zarrita", "@zarrita/storage", "@vivjs/loaders")
VERSIONS = ("0.5", "0.4")
LABELS = "labels/cells"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# Fewer is an empty canvas with its scale bar.
FEWEST_COLOURS = 100
Seen = dict[str, str]


def digest(pixels: Any) -> str:
    """Hash (y, x) pixels, little endian: of the first plane where there are more axes."""
    import numpy as np

    plane = np.asarray(pixels[(0,) * (pixels.ndim - 2)])
    return hashlib.sha256(np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).tobytes()).hexdigest()


def read_zarr(store: Path) -> Seen:
    """Read by zarr alone."""
    import zarr

    root = zarr.open_group(store, mode="r")
    return {"image": digest(root["0"]), "labels": digest(root[f"{LABELS}/0"])}


def read_ome_zarr(store: Path) -> Seen:
    """Read by ome-zarr-py, the reader of the OME team; it finds the labels itself."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = {node.zarr.basename(): node.data for node in Reader(parse_url(str(store)))()}
    return {"image": digest(nodes[store.name][0]), "labels": digest(nodes["cells"][0])}


def read_napari(store: Path) -> Seen:
    """Open in napari's model of a viewer, by its plugin, as dropping the folder onto the window does."""
    from napari.components import ViewerModel
    from npe2 import PluginManager

    PluginManager.instance().discover()
    viewer = ViewerModel()
    viewer.open(str(store), plugin="napari-ome-zarr")
    kinds = {
        type(layer).__name__: layer.data[0] if layer.multiscale else layer.data for layer in reversed(viewer.layers)
    }
    return {"image": digest(kinds["Image"]), "labels": digest(kinds["Labels"])}


def read_ngff_zarr(store: Path) -> Seen:
    """Read by ngff-zarr (ITK's)."""
    import ngff_zarr

    folders = {"image": store, "labels": store / LABELS}
    return {kind: digest(ngff_zarr.from_ngff_zarr(str(folder)).images[0].data) for kind, folder in folders.items()}


def check_models(store: Path) -> Seen:
    """Check the metadata by ome-zarr-models, and read what they name."""
    import ome_zarr_models
    import zarr

    seen = {}
    for kind, folder in {"image": store, "labels": store / LABELS}.items():
        group = zarr.open_group(folder, mode="r")
        model = ome_zarr_models.open_ome_zarr(group)
        attributes = getattr(model, "ome_attributes", model.attributes)
        seen[kind] = digest(group[attributes.multiscales[0].datasets[0].path])
    return seen


def draw_neuroglancer(store: Path) -> Seen:
    """Draw by neuroglancer in Chromium."""
    with serve(store) as address:
        sources = {"image": f"zarr://{address}/", "labels": f"zarr://{address}/{LABELS}/"}
        return {kind: _draw(kind, source) for kind, source in sources.items()}


def _draw(kind: str, source: str) -> str:
    import neuroglancer
    import numpy as np

    layers = {"image": neuroglancer.ImageLayer, "labels": neuroglancer.SegmentationLayer}
    viewer = neuroglancer.Viewer()
    with viewer.txn() as state:
        state.layers[kind] = layers[kind](source=source)
        state.dimensions = neuroglancer.CoordinateSpace(
            names=["x", "y", "z", "t"], units=["m", "m", "", ""], scales=[5e-7, 5e-7, 1, 1]
        )
        state.position, state.cross_section_scale, state.layout = [512, 512, 0.5, 0.5], 2, "xy"
    drawn: list[Any] = []
    is_drawn = threading.Event()
    viewer.async_screenshot(lambda reply: (drawn.append(reply), is_drawn.set()))
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise RuntimeError("no Chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless=new",
            "--no-sandbox",
            "--use-gl=angle",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
        )
        command = [browser, *options, f"--user-data-dir={profile}", "--window-size=800,600", viewer.get_viewer_url()]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if not is_drawn.wait(120):
                raise RuntimeError("nothing drawn in 120 s")
        finally:
            process.terminate()
            process.wait()
    colours = np.unique(drawn[0].screenshot.image_pixels[60:, :, :3].reshape(-1, 3), axis=0)
    return "drawn" if len(colours) >= FEWEST_COLOURS else f"{len(colours)} colours"


JAVASCRIPT = """
import * as zarr from "zarrita";
import { createHash } from "node:crypto";
const [address, labels, reader] = process.argv.slice(2);
const hash = (a, n) => createHash("sha256").update(Buffer.from(a.buffer, a.byteOffset, n * a.BYTES_PER_ELEMENT)).digest("hex");
const seen = {};
for (const [kind, path] of [["image", ""], ["labels", labels]]) {
  try {
    if (reader === "viv") {
      const { loadOmeZarr } = await import("@vivjs/loaders");
      const { data } = await loadOmeZarr(`${address}/${path}`, { type: "multiscales" });
      const raster = await data[0].getRaster({ selection: { t: 0, c: 0, z: 0 } });
      seen[kind] = hash(raster.data, raster.width * raster.height);
    } else {
      const array = await zarr.open(new zarr.FetchStore(`${address}/${path ? path + "/" : ""}0`), { kind: "array" });
      const plane = await zarr.get(array, [0, 0, 0, null, null]);
      seen[kind] = hash(plane.data, plane.shape[0] * plane.shape[1]);
    }
  } catch (error) { seen[kind] = `no: ${error.message}`.slice(0, 80); }
}
console.log(JSON.stringify(seen));
"""


def read_by_node(reader: str, store: Path) -> Seen:
    """Read over HTTP in Node."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("no Node")
    script = Path(sys.prefix) / "read.mjs"
    script.write_text(JAVASCRIPT)
    with serve(store) as address:
        answer = subprocess.check_output([node, script, address, LABELS, reader], text=True, timeout=120)
    seen: Seen = json.loads(answer)
    return seen


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files to pages from elsewhere, and parts of files: shards are read in parts."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def end_headers(self) -> None:
        """Let any page read."""
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def send_head(self) -> Any:
        """Answer with the part that is asked for."""
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            return super().send_head()
        size = path.stat().st_size
        start = int(asked[1]) if asked[1] else size - int(asked[2])
        end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
        part = path.read_bytes()[start:end]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; yields the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


READERS: dict[str, tuple[str, Callable[[Path], Seen]]] = {
    "zarr": ("zarr", read_zarr),
    "ome-zarr-py": ("ome-zarr", read_ome_zarr),
    "napari, napari-ome-zarr": ("napari-ome-zarr", read_napari),
    "ome-zarr-models": ("ome-zarr-models", check_models),
    "ngff-zarr": ("ngff-zarr", read_ngff_zarr),
    "neuroglancer": ("neuroglancer", draw_neuroglancer),
    "zarrita.js": ("zarrita", functools.partial(read_by_node, "zarrita")),
    "Viv's loaders": ("@vivjs/loaders", functools.partial(read_by_node, "viv")),
}


def read_apart(name: str, store: Path) -> None:
    """Read in this process, which is of the other environment; print version and digests, or the error, as JSON."""
    package, read = READERS[name]
    seen = {"version": _find_version(package)}
    try:
        seen |= read(store)
    except Exception as error:  # noqa: BLE001 (whatever another program raises is what it says of the result)
        seen["error"] = f"{type(error).__name__}: {error}"[:120]
    print(json.dumps(seen))


def _find_version(package: str) -> str:
    if package not in NODE_PACKAGES:
        return importlib.metadata.version(package)
    described = Path(sys.prefix) / "node_modules" / package / "package.json"
    return str(json.loads(described.read_text())["version"]) if described.exists() else "absent"


def make_environment(folder: Path) -> Path:
    """Make the environment, unless it is there; return its Python."""
    python, tools = folder / "bin" / "python", Path(sys.executable).parent
    if not python.exists():
        subprocess.check_call([tools / "uv", "venv", "--quiet", folder, "--python", sys.executable])
        subprocess.check_call([tools / "uv", "pip", "install", "--quiet", "--python", python, *PACKAGES])
        if shutil.which("npm"):
            subprocess.check_call(["npm", "install", "--silent", "--no-audit", "--prefix", folder, *NODE_PACKAGES])
    return python


def make_results(folder: Path) -> dict[str, tuple[Path, Seen]]:
    """Make a store of each version; return it with the digests of what slidesam wrote."""
    import slidesam
    from slidesam.tasks.folder.demo import make_demo_slide

    slide = folder / "s.tif"
    make_demo_slide(slide, 1024, 1)
    stores = {}
    for version in VERSIONS:
        settings = {
            "segmenter.kind": "watershed", "image.ome_zarr": version, "image.convert": "always", "output.formats": [],
        }  # fmt: skip
        result = slidesam.segment(slide, folder / version, settings, progress=False)
        expected = {"image": digest(result.image[:, :][..., 0]), "labels": digest(result.labels[:, :])}
        stores[version] = (result.store, expected)
    return stores


def judge(seen: Seen, expected: Seen, kind: str) -> str:
    """Say whether a reader saw what there is."""
    if "error" in seen:
        return f"no ({seen['error']})"
    if seen[kind] in (expected[kind], "drawn"):
        return "yes"
    return seen[kind] if seen[kind].startswith("no") else "other pixels"


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(".venv-open"))
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        read_apart(chosen.read[0], Path(chosen.read[1]))
        return
    python = make_environment(chosen.environment.absolute())
    columns = [f"{version} {kind}" for version in VERSIONS for kind in ("image", "labels")]
    print(f"| program | version | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        stores = make_results(Path(folder))
        for name in READERS:
            cells, release = [], ""
            for store, expected in stores.values():
                command = [python, "-W", "ignore", __file__, "--read", name, store]
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
                seen = json.loads(done.stdout.splitlines()[-1])
                release = seen["version"]
                cells += [judge(seen, expected, kind) for kind in ("image", "labels")]
            print(f"| {name} | {release} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
