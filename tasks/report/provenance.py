"""How a result was made: `<name>.<label>.run.json`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from slidesam.tasks.errors import OutputError
from slidesam.tasks.report.nothing_found import warn_if_nothing_found
from slidesam.tasks.run.marks import find_mark, list_blocks, read_params
from slidesam.tasks.run.records import ImageFacts, Provenance, SeamReport, SegmenterFacts
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.packages import package_version
from slidesam.tasks.store.image import has_image
from slidesam.tasks.store.ome_zarr import is_finished
from slidesam.tasks.store.verify import find_result_damage

# Packages whose version can change a pixel.
_PACKAGES = (
    "slidesam",
    "numpy",
    "scipy",
    "scikit-image",
    "tifffile",
    "imagecodecs",
    "zarr",
    "fastremap",
    "torch",
    "torchvision",
    "pillow",
    "micro-sam",
    "torch-em",
    "python-elf",
    "bioimage-cpp",
    "segment-anything-py",
    "segment-anything",
    "cellpose",
    "opencv-python-headless",
    "stardist",
    "tensorflow",
)


def read_finished(run: Run) -> Provenance | None:
    """The provenance of this very run if it is finished and the store still has its image, else None.

    Raises:
        OutputError: The system doesn't let files of it be read.
    """
    try:
        record = Provenance.read(run.paths.provenance)
    except OutputError as error:
        if isinstance(error.__cause__, OSError):
            # It may be sound: nothing is made again for a passing error.
            raise
        # Of another version: its result is made again.
        return None
    if record is None or record.fingerprints != run.fingerprints:
        return None
    # Another run may have replaced the image since, and have stopped before it came to the labels. An image of other settings
    # serves: two labels that each wanted their own would be made again in turn, for ever.
    damages = [damage for finding in find_result_damage(run) for damage in finding.damages]
    if unreadable := [damage for damage in damages if not damage.is_certain]:
        raise OutputError(f"{unreadable[0]}: check the folder, then run the same command again")
    is_there = is_finished(run.store, run.label) and has_image(run)
    return record if is_there and not damages else None


def make_provenance(
    run: Run, *, objects: int, seams: SeamReport, seconds: dict[str, float], file_list: tuple[int, int]
) -> Provenance:
    """Describe how the result was made.

    Args:
        run: The run, all of whose blocks are segmented.
        objects: Number of objects.
        seams: What happened at the seams.
        seconds: Per stage, the wall time of its tasks added up.
        file_list: Size and crc32c of the list of its files.
    """
    params, block_ids = read_params(run), list_blocks(run)
    marks = [mark for block_id in block_ids if (mark := find_mark(run, block_id)) is not None]
    return Provenance(
        status="finished",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        slide=run.slide,
        label=run.label,
        objects=objects,
        blocks=len(run.grid),
        blocks_without_tissue=tuple(sorted(set(range(len(run.grid))).difference(block_ids))),
        image=ImageFacts(
            mode=run.image_plan.mode,
            reason=run.image_plan.reason,
            read_amplification_in_place=round(run.image_plan.amplification, 2),
        ),
        settings=run.settings.model_dump(mode="json"),
        segmenter=SegmenterFacts(
            identity=run.segmenter_identity,
            params=params.params,
            fill=params.fill,
            devices=_sort({mark.device for mark in marks}),
            threads=_sort({mark.threads for mark in marks}),
            precision=_sort({mark.precision for mark in marks} - {None}),
            batch_size=_sort({mark.batch_size for mark in marks} - {None}),
        ),
        fingerprints=run.fingerprints,
        task_seconds={stage: round(value, 3) for stage, value in seconds.items()},
        warnings=(*params.warnings, *warn_if_nothing_found(run, params, objects)),
        versions={name: version for name in _PACKAGES if (version := package_version(name))},
        file_list=file_list,
        # Last, as it is long.
        seams=seams,
    )


def _sort(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted(map(str, values)))
