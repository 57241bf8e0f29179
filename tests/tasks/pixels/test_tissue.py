"""The tissue mask: blocks are left out only where nothing but background can be."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage
from skimage.io import imread

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.tissue import blocks_with_tissue, find_tissue

GLASS, NUCLEUS = (243, 240, 242), (140, 105, 170)
SHAPE = (300, 360)


def cells(shape, count, diameter, rng, margin=20):
    """Share of each pixel that isolated discs cover, be they smaller than a pixel; and where their centres are."""
    covered, centres = np.zeros(shape), rng.uniform(margin, np.array(shape) - margin, (count, 2))
    reach = int(diameter / 2) + 2
    fine = (np.arange((2 * reach + 1) * 16) + 0.5) / 16
    for y, x in centres:
        top, left = int(y) - reach, int(x) - reach
        disc = (top + fine[:, None] - y) ** 2 + (left + fine - x) ** 2 <= (diameter / 2) ** 2
        share = disc.reshape(2 * reach + 1, 16, 2 * reach + 1, 16).mean((1, 3))
        covered[top : top + 2 * reach + 1, left : left + 2 * reach + 1] += share
    return np.clip(covered, 0, 1), centres.astype(int)


def stained(covered, ground=GLASS, stain=NUCLEUS):
    """(y, x, 3) glass, or what `ground` is, under cells."""
    return np.asarray(ground) * (1 - covered[..., None]) + np.asarray(stain) * covered[..., None]


def digitised(image, rng, noise=0.5, dtype=np.uint8):
    noisy = image + rng.normal(0, noise, image.shape)
    return np.clip(np.rint(noisy), 0, np.iinfo(dtype).max).astype(dtype)


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def section(shape, rng):
    """(y, x) bool: something like a piece of tissue, in the left third."""
    y, x = np.indices(shape)
    ragged = ndimage.gaussian_filter(rng.normal(size=shape), 6) * 8
    return ((y - shape[0] / 2) / (0.35 * shape[0])) ** 2 + ((x - shape[1] / 6) / (0.12 * shape[1])) ** 2 < 1 + ragged


def texture(shape, colour, rng, contrast=12.0):
    """(y, x, 3) even tissue, with structure of all sizes."""
    rough = sum(size * ndimage.gaussian_filter(rng.normal(size=shape), size) for size in (1, 3, 9))
    return np.asarray(colour) + contrast * rough[..., None]


def found_share(mask, centres):
    return mask[centres[:, 0], centres[:, 1]].mean()


class TestBrightField:
    @pytest.mark.parametrize("factor", [1, 8, 32])
    @pytest.mark.parametrize("quality", [None, 80])
    @pytest.mark.parametrize("gradient", [0, 6, 25])
    def test_isolated_cells_are_found(self, factor, quality, gradient) -> None:
        """Nuclei of 22 pixels of level 0, on an overview that much coarser."""
        rng = np.random.default_rng(factor)
        covered, centres = cells(SHAPE, 25, 22 / factor, rng)
        covered[section(SHAPE, rng)] = 0.7
        shade = gradient * np.linspace(0, 1, SHAPE[1])[:, None]
        image = digitised(stained(covered, np.asarray(GLASS) - shade), rng, 1.5 / factor**0.5)
        image = as_jpeg(image, quality) if quality else image
        assert found_share(find_tissue(image, is_rgb=True), centres) == 1

    def test_glass_is_left_out(self) -> None:
        rng = np.random.default_rng(0)
        piece = section(SHAPE, rng)
        covered, _ = cells(SHAPE, 3, 2, rng)
        image = digitised(stained(np.maximum(covered, 0.6 * piece)), rng)
        for shown in (image, as_jpeg(image, 90)):
            mask = find_tissue(shown, is_rgb=True)
            far = ndimage.distance_transform_edt(~(piece | (covered > 0))) > 9
            assert mask[piece].all()
            assert mask[far].mean() < 0.01

    @pytest.mark.parametrize("value", [0, 255])
    @pytest.mark.parametrize("share", [0.1, 0.6])
    def test_padding_is_no_tissue(self, value, share) -> None:
        rng = np.random.default_rng(1)
        piece = section(SHAPE, rng)
        image = digitised(stained(0.6 * piece), rng)
        begin = int(SHAPE[1] * (1 - share))
        image[:, begin:] = value
        for shown in (image, as_jpeg(image, 92)):
            mask = find_tissue(shown, is_rgb=True)
            assert mask[:, :begin][piece[:, :begin]].all()
            # JPEG rings for a block of 16 pixels.
            assert not mask[:, begin + 20 :].any()
        assert find_tissue(image, is_rgb=True)[:, :begin][:, 130:].mean() < 0.2

    @pytest.mark.parametrize("share", [0.05, 0.6, 0.95])
    @pytest.mark.parametrize("glass", [243, 255])
    def test_what_wasnt_scanned_doesnt_pass_for_glass(self, share, glass) -> None:
        """Gaps are whiter than glass, which must not count as tissue beside them; nor may any tissue be lost."""
        rng = np.random.default_rng(0)
        image = np.full((400, 400, 3), glass, np.int16)
        tissue = np.zeros((400, 400), bool)
        tissue[150:250, 150:250] = True
        image[tissue] = 228, 178, 205
        image = (image + rng.integers(-2, 3, image.shape)).clip(0, 255).astype(np.uint8)
        is_gap = rng.random((20, 20)) < share
        is_gap[7:13, 7:13] = False
        image[np.kron(is_gap, np.ones((20, 20))) > 0] = 255
        found = find_tissue(image, is_rgb=True, has_gaps=True)
        assert found[tissue].all()
        assert found.sum() < 1.3 * tissue.sum()

    @pytest.mark.parametrize("colour", [(185, 160, 215), (225, 215, 228), (205, 150, 190), (215, 212, 214)])
    @pytest.mark.parametrize("white", [0.0, 0.3])
    def test_an_image_of_nothing_but_tissue_is_kept(self, colour, white) -> None:
        """Also where glass was made white, so that pale tissue is the commonest grey."""
        rng = np.random.default_rng(2)
        image = digitised(texture(SHAPE, colour, rng), rng)
        begin = int(SHAPE[1] * (1 - white))
        image[:, begin:] = 255
        grid = BlockGrid(SHAPE, (32, 32), 0)
        kept = blocks_with_tissue(find_tissue(image, is_rgb=True), grid)
        assert set(kept) >= {block.block_id for block in grid if block.inner.x1 <= begin}

    def test_glass_of_more_than_eight_bits(self) -> None:
        rng = np.random.default_rng(3)
        covered, centres = cells(SHAPE, 20, 0.8, rng)
        image = stained(covered)
        for shown in (
            digitised(image * 16, rng, 6, np.uint16),
            digitised(image * 256, rng, 90, np.uint16),
            (image / 255 + rng.normal(0, 0.002, image.shape)).astype(np.float32),
            image + rng.normal(0, 0.4, image.shape),
        ):
            mask = find_tissue(shown, is_rgb=True)
            assert found_share(mask, centres) == 1
            assert mask.mean() < 0.05

    @pytest.mark.parametrize(
        ("colour", "is_tissue"),
        [((240,) * 3, 0), ((255,) * 3, 0), ((0,) * 3, 0), ((120,) * 3, 1), ((200, 120, 180), 1)],
    )
    def test_one_colour_is_tissue_where_glass_cannot_have_it(self, colour, is_tissue) -> None:
        assert find_tissue(np.full((40, 50, 3), colour, np.uint8), is_rgb=True).mean() == is_tissue

    def test_fluorescence_saved_as_colours_is_kept(self) -> None:
        rng = np.random.default_rng(4)
        covered, centres = cells(SHAPE, 20, 3, rng)
        image = digitised(stained(covered, (4, 3, 9), (20, 30, 200)), rng)
        assert found_share(find_tissue(image, is_rgb=True), centres) == 1


class TestFluorescence:
    def slide(self, rng, factor=16, brightness=1000.0):
        covered, centres = cells(SHAPE, 25, 22 / factor, rng)
        return 100 + rng.normal(0, 8 / factor, SHAPE) + covered * brightness, centres

    @pytest.mark.parametrize("factor", [1, 8, 32])
    @pytest.mark.parametrize("shade", ["even", "vignetted", "gradient"])
    @pytest.mark.parametrize("kind", ["uint16", "shifted", "float", "padded"])
    def test_isolated_cells_are_found(self, factor, shade, kind) -> None:
        rng = np.random.default_rng(factor)
        image, centres = self.slide(rng, factor, brightness=400)
        y, x = np.indices(SHAPE)
        image += {"even": 0, "vignetted": -4 * np.hypot(y % 64 / 32 - 1, x % 64 / 32 - 1), "gradient": x / 3}[shade]
        if kind == "padded":
            image[:, 280:] = 0
            centres = centres[centres[:, 1] < 275]
        counts = np.clip(np.rint(image), 0, 4095).astype(np.uint16)
        shown = counts << 4 if kind == "shifted" else (counts / np.float32(65535) if kind == "float" else counts)
        mask = find_tissue(shown[..., None], is_rgb=False)
        assert found_share(mask, centres) == 1
        assert not mask[:, 285:].any() or kind != "padded"

    def test_background_is_left_out(self) -> None:
        rng = np.random.default_rng(0)
        image, centres = self.slide(rng)
        far = np.ones(SHAPE, bool)
        far[tuple(centres.T)] = False
        far = ndimage.distance_transform_edt(far) > 6
        for shown in (image, image.astype(np.uint16), (image / 4096).astype(np.float16)):
            assert find_tissue(shown[..., None], is_rgb=False)[far].mean() < 0.02

    def test_each_channel_counts_and_an_empty_one_costs_nothing(self) -> None:
        rng = np.random.default_rng(1)
        first, centres = self.slide(rng)
        second, others = self.slide(rng)
        empty = 100 + rng.normal(0, 1, SHAPE)
        image = np.stack([first, empty, second, np.zeros(SHAPE)], axis=-1).astype(np.uint16)
        mask = find_tissue(image, is_rgb=False)
        assert found_share(mask, np.concatenate([centres, others])) == 1
        assert mask.mean() < 0.1

    @pytest.mark.parametrize("level", [300, 3000])
    def test_nothing_but_tissue_is_kept(self, level) -> None:
        """Dense tissue seen coarsely: each pixel holds a few nuclei, by chance."""
        rng = np.random.default_rng(2)
        image = level * (1 + 0.2 * rng.normal(size=SHAPE)).clip(0.1)
        image[rng.random(SHAPE) > 0.998] *= 3
        assert find_tissue(image.astype(np.uint16)[..., None], is_rgb=False).all()

    def test_uniform_objects_on_nothing_are_found(self) -> None:
        image = np.zeros((*SHAPE, 1), np.uint8)
        image[20:120, 20:120], image[200:203, 300] = 1, 200
        mask = find_tissue(image, is_rgb=False)
        assert mask[20:120, 20:120][[0, 0, -1, -1], [0, -1, 0, -1]].all()
        assert mask[201, 300]
        image[image == 1] = 7
        assert find_tissue(image, is_rgb=False)[20:120, 20:120].all()

    def test_dark_objects_of_a_grey_image_are_found(self) -> None:
        rng = np.random.default_rng(3)
        covered, centres = cells(SHAPE, 10, 3, rng)
        for dtype, white in ((np.uint8, 200), (np.uint16, 3000)):
            image = digitised(white * (1 - 0.5 * covered), rng, white / 200, dtype)
            assert found_share(find_tissue(image[..., None], is_rgb=False), centres) == 1

    @pytest.mark.parametrize("value", [0, 1, 100, 255])
    def test_one_value_is_no_tissue(self, value) -> None:
        for dtype in (np.uint8, np.uint16, np.float32):
            assert not find_tissue(np.full((40, 50, 2), value, dtype), is_rgb=False).any()

    def test_what_is_no_number_is_ignored(self) -> None:
        rng = np.random.default_rng(4)
        image, centres = self.slide(rng)
        for nothing in (np.nan, np.inf, -np.inf, -3.4e38):
            shown = image.astype(np.float32)[..., None].repeat(2, axis=2)
            shown[:, 250:], shown[..., 1] = nothing, nothing
            mask = find_tissue(shown, is_rgb=False)
            inside = centres[:, 1] < 245
            assert found_share(mask, centres[inside]) == 1
            assert mask[:, :245].mean() < 0.1
            assert not mask[:, 255:].any()
        assert not find_tissue(np.full((9, 9, 1), np.nan), is_rgb=False).any()

    def test_one_hot_pixel_hides_nothing(self) -> None:
        rng = np.random.default_rng(5)
        image, centres = self.slide(rng)
        image[3, 3] = 1e9
        for shown in (image, image.clip(0, 65535).astype(np.uint16), image / 1e9):
            assert found_share(find_tissue(shown[..., None], is_rgb=False), centres) == 1


dtypes = st.sampled_from([np.uint8, np.uint16, np.int16, np.uint32, np.float16, np.float32, np.float64])
overviews = st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)).flatmap(
    lambda shape: dtypes.flatmap(lambda dtype: arrays.arrays(dtype, shape))
)


@given(overviews, st.booleans())
def test_any_image_has_a_mask(overview, is_rgb) -> None:
    """Warnings are errors here."""
    mask = find_tissue(overview, is_rgb=is_rgb)
    assert mask.shape == overview.shape[:2]
    assert mask.dtype == bool


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.floats(0.0, 2.0),
    st.integers(150, 250),
    st.tuples(*[st.integers(0, 79)] * 2),
)
def test_a_pixel_that_stands_out_is_tissue(seed, is_rgb, noise, level, at) -> None:
    rng = np.random.default_rng(seed)
    contrast = 8 + 12 * noise
    image = np.full((80, 80, 3), float(level if is_rgb else 255 - level))
    image[at] += -contrast if is_rgb else contrast
    assert find_tissue(digitised(image, rng, noise), is_rgb=is_rgb)[at]


sides = st.integers(1, 40)
grids = st.builds(BlockGrid, st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 15))
masks = arrays.arrays(bool, st.tuples(st.integers(1, 25), st.integers(1, 25)))


def blocks_by_looking(mask, grid) -> list[int]:
    """The definition: exact rectangles, pixel by pixel."""
    scale_y, scale_x = (Fraction(size, pixels) for size, pixels in zip(grid.shape, mask.shape, strict=True))
    return [
        block.block_id
        for block in grid
        if any(
            y * scale_y < block.outer.y1
            and (y + 1) * scale_y > block.outer.y0
            and x * scale_x < block.outer.x1
            and (x + 1) * scale_x > block.outer.x0
            for y, x in np.argwhere(mask)
        )
    ]


@settings(deadline=None)
@given(masks, grids)
def test_blocks_are_those_that_see_a_pixel_of_the_mask(mask, grid) -> None:
    assert blocks_with_tissue(mask, grid) == blocks_by_looking(mask, grid)


@pytest.mark.parametrize(("size", "pixels"), [(1601, 51), (1599, 49), (1600, 50)])
def test_the_pixels_of_a_coarse_level_lie_where_its_step_says(size: int, pixels: int) -> None:
    grid = BlockGrid((size, size), (100, 100), 10)
    for pixel in range(pixels):
        mask = np.zeros((pixels, pixels), bool)
        mask[pixel, 0] = True
        rows = [
            row
            for row in range(grid.grid_shape[0])
            if row * grid.grid_shape[1] in blocks_with_tissue(mask, grid, (32, 32))
        ]
        expected = [
            block.block_index[0]
            for block in grid
            if block.block_index[1] == 0 and block.outer.y0 < 32 * (pixel + 1) and block.outer.y1 > 32 * pixel
        ]
        assert set(rows) >= set(expected)
        assert pixel == pixels - 1 or rows == expected


@given(masks, grids, st.randoms(use_true_random=False))
def test_more_mask_never_means_fewer_blocks(mask, grid, random) -> None:
    more = mask.copy()
    more[random.randrange(mask.shape[0]), random.randrange(mask.shape[1])] = True
    assert set(blocks_with_tissue(mask, grid)) <= set(blocks_with_tissue(more, grid))


@given(masks, grids)
def test_all_or_none(mask, grid) -> None:
    assert blocks_with_tissue(np.ones_like(mask), grid) == list(range(len(grid)))
    assert blocks_with_tissue(np.zeros_like(mask), grid) == []


def missed(truth, mask, block, halo) -> np.ndarray:
    """Objects with pixels in the inner region of a block that is left out."""
    grid = BlockGrid(truth.shape, (block, block), halo)
    left_out = set(range(len(grid))) - set(blocks_with_tissue(mask, grid))
    found = [np.unique(truth[grid[block_id].inner.slices]) for block_id in left_out]
    return np.setdiff1d(np.concatenate(found), [0]) if found else np.zeros(0)


def coarser(image, factor):
    height, width = (size // factor * factor for size in image.shape[:2])
    parts = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(parts.mean((1, 3))).astype(image.dtype)


class TestRealSlides:
    @pytest.mark.parametrize("factor", [1, 16])
    def test_no_nucleus_of_the_mosaic_is_lost(self, shared_data, factor) -> None:
        folder = shared_data / "mosaic_he"
        image = tifffile.imread(folder / "dsb_he_mosaic_2560x3200.tif")
        mask = find_tissue(coarser(image, factor), is_rgb=True)
        assert missed(tifffile.imread(folder / "dsb_he_mosaic_labels.tif"), mask, 128, 32).size == 0

    @pytest.mark.parametrize("factor", [1, 4, 16])
    def test_no_fluorescent_nucleus_is_lost(self, shared_data, factor) -> None:
        cases = [(shared_data / "stardist_images" / "img2d.tif", shared_data / "stardist_images" / "mask2d.tif")]
        images = sorted((shared_data / "dsb2018_fluo").glob("*_image.png"))
        cases += [(path, path.with_name(path.name.replace("_image.png", "_labels.tif"))) for path in images]
        assert len(cases) == 10
        for path, labels in cases:
            image = imread(path)
            image = image[..., :1] if image.ndim == 3 else image[..., None]
            mask = find_tissue(coarser(image, factor), is_rgb=False)
            assert missed(tifffile.imread(labels), mask, 64, 16).size == 0, path.name

    def test_background_of_the_embryos_is_left_out(self, shared_data) -> None:
        image = imread(shared_data / "dsb2018_fluo" / "20b20ab04937_image.png")[..., :1]
        grid = BlockGrid(image.shape[:2], (64, 64), 16)
        assert len(blocks_with_tissue(find_tissue(image, is_rgb=False), grid)) < 0.5 * len(grid)

    def test_glass_of_real_slides_is_left_out_and_tissue_is_not(self, shared_data) -> None:
        for name, most in (("svs_cmu1_small/CMU-1-Small-Region.svs", 0.45), ("he_instanseg/HE_example.tif", 0.8)):
            image = tifffile.imread(shared_data / name)
            mask = find_tissue(image, is_rgb=True)
            assert mask.mean() < most
            # Whatever is clearly stained, by another measure.
            assert mask[image.min(axis=2) < 190].all()
