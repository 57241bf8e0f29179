"""The page of a cohort: a table of how each slide ended."""

from __future__ import annotations


def test_the_table_shows_names_and_errors_as_they_are_failed_ones_first() -> None:
    from slidesam.flows.many.cohort_page import Row, as_markdown

    words = as_markdown(
        [
            Row("a|b", "Completed", 1234, "9", 3.21, "", "http://x"),
            Row("d", "Completed", 0, "9", warning="no cells"),
            Row("<c>", "Failed", error="no\n*such* | thing"),
        ]
    )
    title, _, _, _, first, warned, second = words.splitlines()
    assert title == "# 3 slides: 2 completed, 1 failed"
    assert warned == "| d | Completed | 0 | 9 |  | no cells |"
    assert first == r"| \<c\> | **Failed** |  |  |  | no \*such\* \| thing |"
    assert second == r"| [a\|b](http://x) | Completed | 1,234 | 9 | 3.2 |  |"
