"""The pixel oracle: files of some 930 combinations, by eight writers, whose pixels are known before they are written.

slidesam has to read every level as it was written, or to refuse the file by the name of what it can't read. Each file that has to
be read is read by another program too: that shows that the file is what the table says. `make pixel-oracle` prints the figures.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.pixel_decoders import PROGRAMS
from tests.support.pixel_files import Combination, missing_programs
from tests.support.pixel_oracle import all_combinations, judge


@pytest.mark.parametrize("combination", all_combinations(), ids=lambda combination: combination.name.replace("×", "x"))
def test_pixels_are_right_or_refused_by_name(combination: Combination, tmp_path: Path) -> None:
    missing = missing_programs(combination, PROGRAMS)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    verdict = judge(combination, tmp_path)
    assert verdict.outcome == ("right" if combination.levels else "refused"), verdict.reason


def test_the_table_is_wide() -> None:
    table = all_combinations()
    assert len({combination.name for combination in table}) == len(table) > 200
    writers = Counter(combination.writer for combination in table)
    assert writers["tifffile"] * 2 < len(table)
    assert min(writers.values()) > 30
    without_decoder = [combination for combination in table if combination.levels and not combination.decoder]
    assert len(without_decoder) < len(table) / 20
