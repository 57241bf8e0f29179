"""The numbering of a slide's objects on disk: one file, of which a task reads the parts that its blocks need, verified.

Compiled loops index with what is read here, and look at no bounds: so whatever doesn't fit is refused before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.run.array_files import ArrayFile, read_array_facts, write_arrays
from slidesam.tasks.run.files import remove_synced
from slidesam.tasks.run.marks import remove_stage
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch.paint import Numbering
from slidesam.tasks.stitch.report import SeamFacts


def save_numbering(run: Run, numbering: Numbering, seams: SeamFacts, facts: Mapping[str, Any]) -> None:
    """Write a slide's numbering; `resolved.json`, which is written next, vouches for it.

    Args:
        run: The run.
        numbering: The numbering.
        seams: How seams treat each object.
        facts: What it was made of.

    Raises:
        OutputError: It can't be written.
    """
    write_arrays(run.stitch_folder.numbering, numbering._asdict() | seams._asdict(), facts)


def read_seam_facts(run: Run, ids: NDArray[np.int64]) -> SeamFacts | None:
    """Read how seams treat these objects; None where that isn't known any more, or was never noted.

    Args:
        run: The run.
        ids: (n,) ids in the slide.

    Raises:
        DamagedError: The numbering is damaged.
    """
    path = run.stitch_folder.numbering
    if read_array_facts(path) is None:
        return None
    file = ArrayFile(path)
    if not set(SeamFacts._fields).issubset(file.names):
        return None
    columns = [file.on_demand(name) for name in SeamFacts._fields]
    for column in columns:
        column.load_at(ids)
    return SeamFacts(*(column.values[ids] for column in columns))


class StoredNumbering:
    """Read a slide's numbering for the blocks that ask, as `Numbering` has it.

    Args:
        run: The run.
        results: The blocks' results.

    Attributes:
        checksum: Of the numbering, as `read_checksum` reads it.

    Raises:
        DamagedError: The file is damaged or gone; what vouches for it is removed, so that it is made again.
    """

    def __init__(self, run: Run, results: BlockResults) -> None:
        self._run, self._results = run, results
        with self._made_again_if_damaged():
            file = ArrayFile(run.stitch_folder.numbering)
            self.checksum = file.checksum
            self._offsets = file.read("offsets")
            self._relabelling, self._sizes = file.on_demand("relabelling"), file.on_demand("sizes")
        n_labels = self._relabelling.values.size
        if self._offsets.shape != (len(run.grid) + 1,) or (self._offsets[0], self._offsets[-1]) != (0, n_labels):
            raise self._refuse("blocks")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(objects + 1,) pixels that each object claims, by id; 0 where no block that was asked for has the id."""
        return self._sizes.values

    def ids(self, block_id: int) -> NDArray[np.int64]:
        """Return the id in the slide by a block's local label, 0 for background.

        Raises:
            DamagedError: The file is damaged or gone, or isn't of these blocks; what vouches for it is removed.
        """
        start, stop = self._offsets[block_id : block_id + 2].tolist()
        if start < 0 or stop > self._relabelling.values.size or stop - start != self._results.count(block_id):
            raise self._refuse(f"labels of block {block_id}")
        with self._made_again_if_damaged():
            ids = np.concatenate([np.zeros(1, np.int64), self._relabelling.load(start, stop)])
            if ids.max() >= self.sizes.size or ids.min() <= -self.sizes.size:
                raise self._refuse("objects")
            self._sizes.load_at(np.abs(ids))
        return ids

    @contextmanager
    def _made_again_if_damaged(self) -> Iterator[None]:
        try:
            yield
        except DamagedError:
            remove_synced(self._run.stitch_folder.resolved)
            raise

    def _refuse(self, what: str) -> DamagedError:
        """Remove a numbering that doesn't fit, with what it was made of."""
        path = self._run.stitch_folder.path
        remove_stage(path)
        return DamagedError(f"{path} is of other {what} and was removed", "run the same command again")
