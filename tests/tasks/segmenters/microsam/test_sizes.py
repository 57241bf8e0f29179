"""Tile sizes of micro-sam: as many tiles as SAM takes whole, with a warning where it would scale them."""

from __future__ import annotations

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.microsam.sizes import explain_sizes, with_tiles
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.sections import BlockSettings


class TestSizes:
    def test_tiles_with_their_overlap_are_what_sam_takes(self) -> None:
        for halo, tile in ((128, 768), (64, 896), (0, 1024), (400, 512)):
            found = with_tiles(MicroSam(), BlockSettings(halo=halo), (4096, 4096))
            assert found.tile_shape == (tile, tile)
            assert explain_sizes(found, (4096, 4096))[1] is None

    def test_small_blocks_are_not_tiled(self) -> None:
        assert with_tiles(MicroSam(), BlockSettings(), (1024, 900)).tile_shape == "off"

    def test_what_is_given_stays(self) -> None:
        given = MicroSam(tile_shape=(512, 512), tile_halo=(32, 32))
        assert with_tiles(given, BlockSettings(), (4096, 4096)) == given
        assert with_tiles(MicroSam(tile_shape=(512, 512)), BlockSettings(), (4096, 4096)).tile_halo == (128, 128)

    def test_what_is_scaled_is_warned_of(self) -> None:
        assert "shrunk to 0.44" in str(explain_sizes(MicroSam(tile_shape="off"), (2304, 2304))[1])
        small = MicroSam(tile_shape=(256, 256), tile_halo=(64, 64))
        assert "enlarged to 2.7" in str(explain_sizes(small, (2304, 2304))[1])

    def test_an_overlap_without_room_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="256 at most"):
            with_tiles(MicroSam(tile_halo=(512, 512)), BlockSettings(), (4096, 4096))
