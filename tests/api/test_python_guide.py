"""docs/python.md, run as one notebook: each block prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)]
GUIDE = ROOT / "docs" / "python.md"
# A block that is run, and what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_notebook(sources: list[str], folder: Path) -> list[list]:
    """Outputs of each cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        # Of the library that fetches scikit-image's picture, where there are no widgets.
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_guide_prints_what_it_shows(tmp_path: Path) -> None:
    blocks = BLOCK.findall(GUIDE.read_text())
    assert len(blocks) == GUIDE.read_text().count("```python\n") == 9
    outputs = run_notebook([source for source, _ in blocks], tmp_path)
    # Nothing but what is printed: no warning, no progress.
    assert {output.get("name") for cell in outputs for output in cell} == {"stdout"}
    assert ["".join(output["text"] for output in cell) for cell in outputs] == [text for _, text in blocks]


def test_a_notebook_shows_a_line_per_stage(tmp_path: Path) -> None:
    code = (
        "import slidesam\n"
        "from pathlib import Path\n"
        "from tests.support.slides import write_numbered_slide\n"
        "settings = {'segmenter': {'kind': 'function', 'target': 'tests.support.faults:bright_pieces'},\n"
        "            'blocks': {'block_shape': 64, 'halo': 16}}\n"
        "result = slidesam.segment(write_numbered_slide(Path('s.tif')), 'out', settings)"
    )
    (outputs,) = run_notebook([code], tmp_path)
    lines = [out["data"]["text/plain"] for out in outputs if out["output_type"] == "display_data"]
    # So few blocks are stitched in one task, with one line.
    assert lines[-3:-1] == [f"{'█' * 20} {stage} 9/9" for stage in ("segmenting blocks", "painting labels")]
    assert lines[-1] == f"{'█' * 20} describing objects 1/1"
