"""Names of slides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidesam.tasks.slides.facts import slide_name


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/CMU-1.svs", "CMU-1"), ("a.b.OME.TIF", "a.b"), ("s.ome.zarr/", "s"), (".svs", "svs"), ("/", "slide"), ("..", None),
     ("p.zarr/A/1/0", "p_A_1_0"), ("new\nline.tif", "new_line"), ("v1.2", "v1.2"), ("...tif", "tif")],
)  # fmt: skip
def test_names(path: str, name: str | None) -> None:
    assert slide_name(path) == name or (name is None and slide_name(path))


@given(st.text(min_size=1))
def test_names_can_be_file_names(text: str) -> None:
    name = slide_name(text.replace("\0", "x"))
    assert name.strip("._ ")
    assert not set("/\\\n\0") & set(name)
