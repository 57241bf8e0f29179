"""What a segmenter may return as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segment.block import check_labels, renumber
from tests.support.serial import segment_serially

ORDERS = ["<", ">"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_integers_of_any_size_and_byte_order_are_labels(kind: str, order: str) -> None:
    wanted = np.array([[0, 7, 7], [100, 0, 3]])
    for labels in (wanted.astype(order + kind), np.asfortranarray(wanted.astype(order + kind)), wanted.tolist()):
        assert renumber(check_labels(labels, (2, 3))).tolist() == [[0, 1, 1], [2, 0, 3]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((2, 3), ">f4"), "returned >?f.*labels are integers"),
        (np.full((2, 3), -1, ">i2"), "negative labels"),
        (np.zeros((2, 3), bool), "returned bool"),
        (np.zeros((3, 2), ">u2"), "it must keep"),
        (None, "it must keep"),
    ],
)
def test_what_is_no_label_image_is_refused(labels: object, words: str) -> None:
    with pytest.raises(SegmenterError, match=words):
        check_labels(labels, (2, 3))


def big_endian(image: np.ndarray) -> np.ndarray:
    return (np.arange(image.size).reshape(image.shape) // 64 % 50).astype(">i4") * (image > 100)


def little_endian(image: np.ndarray) -> np.ndarray:
    return big_endian(image).astype("<i4")


def test_a_function_of_yours_may_return_either_byte_order(tmp_path: Path) -> None:
    image = np.where(np.indices((200, 200)).sum(axis=0) // 20 % 2, 200, 10).astype(">u2")
    tifffile.imwrite(tmp_path / "s.tif", image, byteorder=">", photometric="minisblack", metadata=None)
    found = [
        segment_serially(
            tmp_path / "s.tif",
            tmp_path / name,
            {
                "segmenter.kind": "function",
                "segmenter.target": f"tests.tasks.segment.test_block:{name}",
                "blocks.block_shape": 128,
                "blocks.halo": 16,
            },
        )
        for name in ("big_endian", "little_endian")
    ]
    assert found[0].max() > 10
    np.testing.assert_array_equal(*found)
