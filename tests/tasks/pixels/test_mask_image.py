"""A mask image of one's own: read alike from every format, and refused in one line where it can't be the slide's."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.pixels import mask_image
from slidesam.tasks.pixels.mask_image import mask_identity, read_mask


class TestMaskImages:
    truth = np.zeros((30, 40), bool)
    truth[5:12, 7:30] = True
    truth[25, 39] = True
    shape = (3000, 4000)

    def written(self, folder):
        """The same mask in every way that a picture can hold it."""
        white = np.uint8(255) * self.truth
        inked = white[..., None] * np.array([0, 0, 1], np.uint8)
        opaque, palette = np.full_like(white, 255), Image.fromarray(white).convert("P")
        pictures = {
            "grey.png": Image.fromarray(white),
            "ones.png": Image.fromarray(self.truth.astype(np.uint8)),
            "bits.png": Image.fromarray(self.truth),
            "blue.png": Image.fromarray(inked),
            "rgba.png": Image.fromarray(np.dstack([inked, opaque])),
            "see-through.png": Image.fromarray(np.dstack([inked, white * 0])),
            "grey and alpha.png": Image.fromarray(np.dstack([white, opaque]), "LA"),
            "deep.png": Image.fromarray(self.truth.astype(np.uint16) * 256),
            "palette.png": palette,
            "palette.tif": palette,
            "bits.tif": Image.fromarray(self.truth),
            "grey.bmp": Image.fromarray(white),
        }
        inverted = Image.fromarray(np.where(self.truth, 0, 3).astype(np.uint8), "P")
        inverted.putpalette([9, 9, 9, 1, 1, 1, 2, 2, 2, 0, 0, 0])
        for name, picture in (pictures | {"black last.png": inverted, "black last.tif": inverted}).items():
            picture.save(folder / name)
            yield folder / name
        for name, image, options in (
            ("numbers.tif", self.truth.astype(np.uint32) * 70000, {}),
            ("share.tif", self.truth.astype(np.float32) * 0.1, {"compression": "zlib", "tile": (16, 16)}),
            ("colours.tif", inked, {"photometric": "rgb", "compression": "lzw"}),
            ("rgba.tif", np.dstack([inked, opaque]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
            ("see-through.tif", np.dstack([inked, white * 0]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
            (
                "channels.ome.tif",
                np.stack([white * 0, white]),
                {"photometric": "minisblack", "metadata": {"axes": "CYX"}},
            ),
            ("truth.tif", self.truth, {}),
            ("big.btf", white, {"bigtiff": True}),
            # As ImageJ writes a mask with an inverting table.
            ("inverted.tif", white, {"photometric": "miniswhite"}),
        ):
            tifffile.imwrite(folder / name, image, **options)
            yield folder / name

    def test_all_kinds_are_read_alike(self, tmp_path) -> None:
        for path in self.written(tmp_path):
            mask = read_mask(path, self.shape)
            assert mask.dtype == bool, path
            assert (mask == self.truth).all(), path

    @pytest.mark.parametrize("photometric", ["rgb", "minisblack", "ycbcr"])
    def test_what_is_not_in_a_sparse_file_is_no_tissue(self, tmp_path, photometric) -> None:
        shape = (64, 64) if photometric == "minisblack" else (64, 64, 3)
        image = np.full(shape, 128, np.uint8)
        tifffile.imwrite(tmp_path / "mask.tif", image, tile=(32, 32), compression="zlib", photometric=photometric)
        with tifffile.TiffFile(tmp_path / "mask.tif", mode="r+b") as tiff:
            sizes = list(tiff.pages[0].databytecounts)
            tiff.pages[0].tags["TileByteCounts"].overwrite((sizes[0], 0, 0, sizes[3]))
        expected = np.kron(np.eye(2), np.ones((32, 32))).astype(bool)
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", (6400, 6400)), expected)

    def test_jpeg_is_read(self, tmp_path) -> None:
        """It rings around what is white, but within blocks of 8 pixels."""
        truth = self.truth.repeat(16, 0).repeat(16, 1)
        Image.fromarray(np.uint8(255) * truth).save(tmp_path / "mask.jpg", quality=80)
        mask = read_mask(tmp_path / "mask.jpg", self.shape)
        assert mask[truth].all()
        assert not mask[ndimage.distance_transform_edt(~truth) > 12].any()

    def test_of_a_pyramid_the_finest_level_that_is_not_too_large(self, tmp_path, monkeypatch) -> None:
        with tifffile.TiffWriter(tmp_path / "mask.tif") as tiff:
            tiff.write(self.truth.repeat(2, 0).repeat(2, 1).astype(np.uint8), subifds=1)
            tiff.write(self.truth.astype(np.uint8), subfiletype=1)
        assert read_mask(tmp_path / "mask.tif", self.shape).shape == (60, 80)
        monkeypatch.setattr(mask_image, "MAX_MASK_PIXELS", 2000)
        assert (read_mask(tmp_path / "mask.tif", self.shape) == self.truth).all()

    @given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
    def test_masks_scaled_by_any_factor_fit(self, height, width, factor) -> None:
        for down in (lambda size: -(-size // factor), lambda size: max(1, size // factor)):
            mask_image._check_shape("mask", (down(height), down(width)), (height, width))

    @pytest.mark.parametrize("shape", [(4000, 3000), (3000, 4200), (3000, 2000)])
    def test_a_mask_of_another_shape_is_refused(self, tmp_path, shape) -> None:
        for suffix in ("png", "tif"):
            Image.fromarray(self.truth).save(tmp_path / f"mask.{suffix}")
            with pytest.raises(SettingsError, match=rf"blocks\.tissue.*30 × 40.*{shape[0]} × {shape[1]}.*turned"):
                read_mask(tmp_path / f"mask.{suffix}", shape)

    def unusable(self, folder):
        yield folder / "missing.png", "No such file"
        yield folder, "directory"
        for name, content in {"text.png": b"not a picture", "text.tif": b"not a picture", "empty.tif": b""}.items():
            (folder / name).write_bytes(content)
            yield folder / name, "can't be read"
        whole = folder / "whole.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 2, (300, 400), np.uint8)).save(whole)
        (folder / "cut.png").write_bytes(whole.read_bytes()[:2000])
        yield folder / "cut.png", "can't be read"
        tifffile.imwrite(folder / "whole.tif", np.ones((300, 400), np.uint8), compression="zlib", rowsperstrip=10)
        (folder / "cut.tif").write_bytes((folder / "whole.tif").read_bytes()[:-600])
        yield folder / "cut.tif", "can't be read"

    def test_what_is_no_mask_is_refused_in_one_line(self, tmp_path) -> None:
        for path, words in self.unusable(tmp_path):
            with pytest.raises(SettingsError, match=words) as caught:
                read_mask(path, self.shape)
            assert "blocks.tissue" in str(caught.value), path
            assert path.name in str(caught.value), path
            assert "\n" not in str(caught.value), path

    def test_absurd_sizes_are_refused_before_anything_is_allocated(self, tmp_path) -> None:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "bomb.png")
        data = bytearray((tmp_path / "bomb.png").read_bytes())
        for side in (12_000, 2**31 - 1):
            data[16:24] = side.to_bytes(4, "big") * 2
            data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
            (tmp_path / "bomb.png").write_bytes(data)
            with pytest.raises(SettingsError, match=r"blocks\.tissue"):
                read_mask(tmp_path / "bomb.png", (30_000, 30_000))
        tiles = iter([zlib.compress(bytes(4096**2))] * 32**2)
        options = {"dtype": np.uint8, "tile": (4096, 4096), "compression": "zlib"}
        tifffile.imwrite(tmp_path / "bomb.tif", tiles, shape=(2**17, 2**17), **options)
        with pytest.raises(SettingsError, match=r"blocks\.tissue"):
            read_mask(tmp_path / "bomb.tif", (2**18, 2**18))

    def test_identity_is_of_the_bytes(self, tmp_path) -> None:
        (tmp_path / "mask.png").write_bytes(b"some bytes")
        assert mask_identity(tmp_path / "mask.png") == hashlib.sha256(b"some bytes").hexdigest()
        with pytest.raises(SettingsError, match=r"blocks\.tissue.*missing"):
            mask_identity(tmp_path / "missing.png")
