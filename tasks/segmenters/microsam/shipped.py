"""The model that slidesam ships, nuclei-small: a vit_t with micro-sam's decoder. docs/nuclei-small.md is its card.

The files hold the encoder and the decoder as float16, in the parts that training/train.py saves. `library.load_model` joins them.
SAM's prompt encoder and mask decoder were not trained, so the model serves one mode, ais, which doesn't use them.
"""

from __future__ import annotations

from pathlib import Path

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.registry import Registered

NUCLEI_SMALL = "nuclei-small"
ARCHITECTURE = "vit_t"
FOLDER = Path(__file__).with_name("nuclei_small")
FILES = {
    "unetr_part0.pt": Registered("sha256:ac2b0de9fd4d7b10010a7cc686a22e7e1c36ac61ab4db1ef6e5df37ff3856adf"),
    "unetr_part1.pt": Registered("sha256:ff57bfff63ceda39fd95833179ae58636c59466999621babd8765680545068aa"),
    "unetr_part2.pt": Registered("sha256:9c3f656c0da20143953a1fcc58bea019d6a49b55e42c2c3a74d6dc44b1f956ca"),
}
CURE = f"--set segmenter.model={NUCLEI_SMALL}, a small model for nuclei whose weights come with slidesam"


def check_shipped(mode: str) -> None:
    """Check that the shipped model serves a mode, and that its files are there.

    Raises:
        SegmenterError: The mode is amg or apg, or a file is missing.
    """
    if mode not in ("auto", "ais"):
        raise SegmenterError(
            f"segmenter.mode {mode} needs SAM's mask decoder, and model {NUCLEI_SMALL} was trained without it",
            "set segmenter.mode: ais, or take another model",
        )
    missing = [name for name in FILES if not (FOLDER / name).is_file()]
    if missing:
        raise SegmenterError(
            f"model {NUCLEI_SMALL} is incomplete: {FOLDER} has no {' and no '.join(missing)}", "install slidesam again"
        )
