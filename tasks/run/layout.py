"""The output folder: where each file lies. Only `stage_folders` and `service_folders` spell further paths below it.

    OUT/<name>.ome.zarr/                  image pyramid, and labels/<label>/ beside it
    OUT/<name>.<label>.run.json           how the result was made; written last: if it is there, the run is finished
    OUT/<name>.<label>.overlay.png        the picture
    OUT/<name>.<label>.classes.csv        the class of each object, where the segmenter gives classes
    OUT/<name>.<label>.objects.*          table and outlines of the objects; .json lists what of `EXPORTS` is finished
    OUT/<name>.<label>.report.html        the report
    OUT/<name>.<label>.files.json         the label image's files, with sizes and checksums
    OUT/<name>.image-files.json           the image's files; no label can have this name
    OUT/.slidesam/.jobs/                  <job>-<number>.log
    OUT/.slidesam/.jobs/<cluster>.keys/   keys.pem, owner.json, <pool>.link; only the user can open it, gone with the run
    OUT/.slidesam/.inbox/                 <hash of a folder>.json, its lock
    OUT/.slidesam/<name>/.image/          what all labels of the slide share
        lock.json                         who writes the slide's image
        labels/lock.json                  who changes the store's list of label images
        store.json                        that slidesam made the store, and of which slide
        convert-<fingerprint>/            causes.json, started.json, marks/<level>-<tile>.json
        rechunk-<fingerprint>/            the same, done.json, and pixels.zarr
    OUT/.slidesam/<name>/<label>/
        lock.json                         who runs
        state.json                        what `slidesam status` shows
        segment-<fingerprint>/            causes.json, params.json, tissue.arrays,
                                          regions-<identity>.arrays, blocks/<block_id>.arrays,
                                          starts/<block_id>.json and .trace.txt
        stitch-<fingerprint>/             causes.json, overlaps/<group>.arrays,
                                          numbering.arrays, resolved.json (written last)
        paint-<fingerprint>/              started.json, measures/<group>.arrays, done.json

Stage folders carry the fingerprint of their stage, so a changed setting redoes its stage and those after it only. A done-mark is
written after the result that it vouches for. A file of arrays (`tasks/run/array_files.py`) is its own done-mark.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path

STORE_SUFFIX = ".ome.zarr"
IMAGE = ".image"
"""In place of a label: the folder that all labels of a slide share. No label can have this name."""
SPATIALDATA = "spatialdata.zarr"
"""Ending of the one folder that is made from finished labels."""
EXPORTS = {
    "objects.parquet": "table of the objects",
    "objects.geojson.gz": "outlines of the objects",
    "objects.outlines.parquet": "table and outlines of the objects",
    "objects.h5ad": "table of the objects as AnnData",
    SPATIALDATA: "all in one as SpatialData",
    "report.html": "report",
}
"""What is made from finished labels, by the ending of its name."""
RUN_STAGES, IMAGE_STAGES = ("objects", "paint", "stitch", "segment"), ("convert", "rechunk")
"""Stages that have folders, later ones first."""
TRASH_PREFIX = ".trash-"
"""Begins the names of folders that are being removed; what a killed process leaves of one, `slidesam clean` removes."""
_WORK, _LOCK, _PROVENANCE_SUFFIX = ".slidesam", "lock.json", ".run.json"
_IMAGE_LIST, _LABEL_LIST = ".image-files.json", ".files.json"


@dataclass(frozen=True)
class RunPaths:
    """Paths of one run (slide × label).

    Attributes:
        output: The output folder.
        name: The slide's name.
        label: Name of the label image, or `IMAGE`.
    """

    output: Path
    name: str
    label: str

    @classmethod
    def of_work(cls, work: Path) -> RunPaths:
        """Paths of the run whose intermediate results lie in this folder."""
        return cls(work.parents[2], work.parent.name, work.name)

    @classmethod
    def of_provenance(cls, path: Path) -> RunPaths:
        """Paths of the run whose record this is, or whose list of files."""
        name, _, label = path.name.removesuffix(_PROVENANCE_SUFFIX).removesuffix(_LABEL_LIST).rpartition(".")
        return cls(path.parent, name, label)

    @classmethod
    def of_store(cls, store: Path, label: str) -> RunPaths:
        """Paths of the run whose label image lies in this store."""
        return cls(store.parent, store.name.removesuffix(STORE_SUFFIX), label)

    @property
    def store(self) -> Path:
        """The OME-Zarr with image and labels."""
        return self.output / f"{self.name}{STORE_SUFFIX}"

    @property
    def label_image(self) -> Path:
        """The label image in the store."""
        return self.store / "labels" / self.label

    @property
    def provenance(self) -> Path:
        """The file that says how the result was made; written last of all."""
        return self.output / f"{self.name}.{self.label}{_PROVENANCE_SUFFIX}"

    @property
    def overlay(self) -> Path:
        """The picture of the result."""
        return self.output / f"{self.name}.{self.label}.overlay.png"

    @property
    def classes(self) -> Path:
        """The table of the objects' classes; there is none where the segmenter gives no classes."""
        return self.output / f"{self.name}.{self.label}.classes.csv"

    def export(self, ending: str) -> Path:
        """A file that is made from finished labels, by an ending of `EXPORTS`."""
        return self.output / f"{self.name}.{self.label}.{ending}"

    def objects(self, suffix: str) -> Path:
        """A file of the objects, by the end of its name."""
        return self.export(f"objects.{suffix}")

    @property
    def exports(self) -> list[Path]:
        """All files that may be made from finished labels, after the list of what is finished."""
        return [self.objects("json"), *(self.export(ending) for ending in EXPORTS if ending != SPATIALDATA)]

    @property
    def spatialdata(self) -> Path:
        """The folder that may be made from finished labels."""
        return self.export(SPATIALDATA)

    @property
    def file_list(self) -> Path:
        """The list of the files that the label image, or the image, consists of."""
        return self.output / f"{self.name}{_IMAGE_LIST if self.label == IMAGE else f'.{self.label}{_LABEL_LIST}'}"

    @property
    def work(self) -> Path:
        """Folder of intermediate results."""
        return slide_folder(self.output, self.name) / self.label

    @property
    def lock(self) -> Path:
        """The lock of whoever runs."""
        return self.work / _LOCK

    @property
    def list_lock(self) -> Path:
        """The lock of whoever changes the list of label images in the store."""
        return self.image.work / "labels" / _LOCK

    @property
    def store_note(self) -> Path:
        """Says that slidesam made the store."""
        return self.image.work / "store.json"

    @property
    def state(self) -> Path:
        """What `slidesam status` shows."""
        return self.work / "state.json"

    @property
    def image(self) -> RunPaths:
        """The same of what all labels of the slide share: folder and lock of its image."""
        return RunPaths(self.output, self.name, IMAGE)

    def stage_folders(self, *stages: str) -> list[Path]:
        """All folders of these stages, of whatever settings, by stage and name."""
        return [path for stage in stages for path in _folders(self.work, f"{stage}-*")]


def work_root(output: Path) -> Path:
    """Folder of everything but results."""
    return output / _WORK


def slide_folder(output: Path, name: str) -> Path:
    """Folder of the intermediate results of all of a slide's runs."""
    return work_root(output) / name


def jobs_folder(output: Path) -> Path:
    """Folder of the logs of jobs that worked on an output folder."""
    return work_root(output.resolve()) / ".jobs"


def list_slide_folders(output: Path) -> list[Path]:
    """Folders of the slides whose intermediate results an output folder has, by name; links aren't followed."""
    root = work_root(output)
    return [] if root.is_symlink() else _folders(root, "[!.]*")


def list_runs(slide: Path) -> list[RunPaths]:
    """The runs of a slide, by label; from its folder of intermediate results."""
    return [RunPaths.of_work(path) for path in _folders(slide, "[!.]*")]


def list_noted_runs(output: Path) -> list[RunPaths]:
    """The runs of an output folder that have a `state.json`, of whatever kind, by slide and label."""
    runs = [run for slide in list_slide_folders(output) for run in list_runs(slide)]
    # Whatever is in its place: a run must not be out of sight because its file is damaged. But what only another user can enter
    # counts as not there.
    return [run for run in runs if os.path.lexists(run.state)]


def find_provenance(output: Path, name: str) -> dict[str, Path]:
    """The `run.json` files of a slide, by label; none of another slide whose name begins like this one's."""
    paths = sorted(output.glob(f"{escape(name)}.*{_PROVENANCE_SUFFIX}"))
    return {run.label: path for path in paths if (run := RunPaths.of_provenance(path)).name == name}


def list_provenance(output: Path) -> list[Path]:
    """The `run.json` files of an output folder, by name."""
    return sorted(output.glob(f"*{_PROVENANCE_SUFFIX}"))


def list_file_lists(output: Path) -> list[Path]:
    """The lists of the label images' files in an output folder."""
    return list(output.glob(f"*.*{_LABEL_LIST}"))


def _folders(folder: Path, pattern: str) -> list[Path]:
    """Folders in a folder, by name; links to some are left alone."""
    return sorted(path for path in folder.glob(pattern) if path.is_dir() and not path.is_symlink())
