"""The text of a slide's page: of a result, and of a failure."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from slidesam.flows.progress.markdown import code, text
from slidesam.flows.progress.page_text import changed_settings, failure_markdown, picture_uri, result_markdown
from slidesam.tasks.errors import BlockFailure, BlockFailures, BlockLostError, SettingsError, SlideError
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch.report import COLUMNS
from tests.support.records import finished_record

ODD = "a|b `c` <img src=x> *d*\n## e [f](g)"
SEAMS = {"totals": dict.fromkeys(COLUMNS, 3) | {"objects": 12}, "warnings": ["raise the halo | to 96"]}
FACTS = finished_record(
    objects=1234,
    blocks_without_tissue=(0, 8),
    task_seconds={"image": 1.0, "segment": 700.0},
    segmenter={"identity": "function", "devices": ["cpu"], "threads": ["1"]},
    versions={"numpy": "2.1"},
    seams=SEAMS,
)


def test_result_says_what_came_out(run) -> None:
    markdown = result_markdown(run, FACTS, "data:image/jpeg;base64,AAAA")
    assert markdown.startswith("# my\\|slide\\_1: 1,234 cells\n")
    assert "**Note:** raise the halo \\| to 96" in markdown
    assert "| **blocks** | 7 of 64 × 64 px, with a halo of 0 px; 2 more without tissue |" in markdown
    assert "12 min of all workers together (image 1.0 s, segment 12 min)" in markdown
    assert "](data:image/jpeg;base64,AAAA)" in markdown
    assert "| **one-sided** | 3 | 25&nbsp;% |" in markdown
    assert "blocks.block_shape: 64" in markdown
    assert f"slidesam seams '{run.store}' --label cells" in markdown
    assert f"`{run.paths.provenance}`" in markdown
    assert all(digest in markdown for digest in run.fingerprints.values())


def test_result_says_how_large_the_objects_are(run) -> None:
    run.output.mkdir(exist_ok=True)
    pq.write_table(pa.table({"area": pa.array([2, 4, 9])}), run.paths.objects("parquet"))
    markdown = result_markdown(run, FACTS)
    assert "| **objects** | 1,234 cells; median area 4 px², half lie between 3 and 6.5 |" in markdown
    assert f"table of the objects: `{run.paths.objects('parquet')}`" in markdown
    assert "report: " not in markdown


def test_result_notes_how_the_run_went(run) -> None:
    note = "block 4 ran out of memory at 7.7 GiB. Tried again: jobs of 16 GiB"
    markdown = result_markdown(run, FACTS, notes=[note])
    assert f"**Note:** {note}" in markdown
    assert "3, see above" in markdown


def test_result_of_an_older_version_lacks_what_it_lacks(run) -> None:
    markdown = result_markdown(run, finished_record(objects=0))
    assert "## Seams" not in markdown
    assert "![" not in markdown
    assert "**computing** | unknown" in markdown


def test_failure_lists_the_first_blocks(run) -> None:
    failures = dict.fromkeys(range(60), BlockFailure.of(ValueError(ODD)))
    markdown = failure_markdown(run, run.slide.path, BlockFailures(run.name, failures, 100, untried=10))
    rows = [line for line in markdown.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 50
    assert "… and 10 more." in markdown
    assert "# my\\|slide\\_1: 60 of 100 blocks failed" in markdown
    assert "30 blocks are done and kept. 10 weren't tried after so many failures in a row." in markdown
    assert rows[5].startswith("| 5 | 1 | 2 | 128,&nbsp;64 | ValueError: a\\|b \\`c\\` \\<img src=x\\> \\*d\\* \\#\\# e")
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert "`slidesam retry " in markdown
    assert "**Retry**" not in markdown
    assert "**Retry**" in failure_markdown(
        run, run.slide.path, BlockFailures("a", {1: BlockFailure("b")}, 2), can_retry=True
    )


def test_failure_shows_how_a_lost_workers_log_ends(run) -> None:
    log_tail = "memory is high | slurmstepd: oom_kill | Killed"
    error = BlockLostError(4, lost=3, timed_out=0, host="node1", timeout=None, log_tail=log_tail)
    markdown = failure_markdown(run, run.slide.path, BlockFailures(run.name, {4: BlockFailure.of(error)}, 9))
    (row,) = [line for line in markdown.splitlines() if line.startswith("| 4 ")]
    assert "block 4 ended its worker 3 times, last on node1" in row
    assert row.endswith("its log ends with:<br>memory is high<br>slurmstepd: oom\\_kill<br>Killed |")


def test_failure_names_job_logs_where_there_are(run) -> None:
    error = SlideError("no such slide")
    assert "logs of jobs" not in failure_markdown(run, run.slide.path, error)
    logs = jobs_folder(run.output)
    logs.mkdir(parents=True)
    (logs / "a-1.log").touch()
    assert f"- logs of jobs: `{logs}`" in failure_markdown(run, run.slide.path, error)


def test_failure_before_there_is_a_run(tmp_path: Path) -> None:
    markdown = failure_markdown(None, tmp_path / "a_b.tif", SlideError(f"can't be read: {ODD}"))
    assert markdown.startswith("# a\\_b: can't be segmented\n\ncan't be read: a\\|b")
    assert "Repair or replace the file. A retry skips the slide until the file changes:" in markdown
    assert "- the same command again" in markdown
    known = failure_markdown(None, tmp_path / "a.tif", SlideError("a"), output=tmp_path / "o u", name="other")
    assert known.startswith("# other: ")
    assert f"`slidesam retry '{tmp_path}/o u'`" in known
    settings = failure_markdown(None, tmp_path / "a_b.tif", SettingsError("unknown"), can_retry=True)
    assert "Start a new run with other settings" in settings
    assert "**Retry**" not in settings
    assert "traceback" in failure_markdown(None, tmp_path / "a.tif", ZeroDivisionError("x"))


def test_words_and_code_stay_what_they_are() -> None:
    assert text(ODD) == "a\\|b \\`c\\` \\<img src=x\\> \\*d\\* \\#\\# e \\[f\\](g)"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`") == "`` ` ``"


def test_only_changed_settings_are_named() -> None:
    assert changed_settings(make_settings()) == {}
    changed = {"segmenter.kind": "watershed", "blocks.block_shape": 512, "blocks.halo": "auto", "segmenter.diameter": 9}
    assert changed_settings(make_settings(overrides=changed)) == {
        "blocks.block_shape": "512",
        "segmenter.kind": "watershed",
        "segmenter.diameter": "9.0",
    }


def test_picture_is_made_small(tmp_path: Path) -> None:
    noise = Image.effect_noise((2400, 1500), 120).convert("RGB")
    noise.save(tmp_path / "a.png")
    uri = picture_uri(tmp_path / "a.png")
    assert uri is not None
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) <= 300_000
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
        assert abs(shown.width / shown.height - 1.6) < 0.01
    assert picture_uri(tmp_path / "none.png") is None
