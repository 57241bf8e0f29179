"""A micro-sam checkpoint (ViT-B with decoder) that needs no download: random weights that still find objects.

Random weights exercise all of micro-sam's code, but left alone they find nothing, or thousands of specks. Three things are
set by hand so that a block of 256-512 px has tens of objects:

1. The decoder's last layer is centred and made steeper, so that thresholds at 0.5 cut its three maps (ais, apg).
2. In the mask decoder, image tokens attend to the prompt that is near them, and a linear readout, solved by least squares
   on prompts at random places, turns that into a mask around the prompt (amg, apg).
3. The predicted IoU is about 0.9, so that default thresholds let masks through.

    python tests/microsam_checkpoint.py PATH [--encoder-only]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

# Medians of the decoder's logits (foreground, centre and boundary distance) for seed 0, on scikit-image's
# immunohistochemistry(), and where they are put instead.
_MEDIANS = (0.082, 0.027, 0.172)
_CENTRES = (0.5, -1.0, 0.5)
_STEEPNESS = 4.0
# Radii of the masks of the mask decoder's four outputs, in SAM's pixels (1024 per side).
_RADII = (70.0, 50.0, 70.0, 95.0)


def make_checkpoint(path: str | os.PathLike[str], *, seed: int = 0, encoder_only: bool = False) -> Path:
    """Writes the checkpoint in torch_em's layout, whole or not at all.

    Args:
        path: File to write, about 410 MB.
        seed: Of torch's generator; the constants above are for 0.
        encoder_only: Leave out the decoder, so that only amg works.

    Returns:
        The path.
    """
    import torch
    from micro_sam.instance_segmentation import get_unetr
    from segment_anything import sam_model_registry

    path = Path(path)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        sam = sam_model_registry["vit_b"]().eval()
        unetr = get_unetr(sam.image_encoder, device="cpu")
        unetr.out_conv.bias.copy_(_STEEPNESS * (unetr.out_conv.bias - torch.tensor(_MEDIANS)) + torch.tensor(_CENTRES))
        unetr.out_conv.weight.mul_(_STEEPNESS)
        _look_near_prompts(sam)
        _read_out_masks(sam)
    content = {"model_state": sam.state_dict()}
    if not encoder_only:
        decoder = {name: value for name, value in unetr.state_dict().items() if not name.startswith("encoder")}
        content["decoder_state"] = decoder
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    torch.save(content, part)
    Path(part).replace(path)
    return path


def _look_near_prompts(sam: Any) -> None:
    """Weak image content and point embeddings, so that positions decide what attends to what."""
    sam.image_encoder.neck[-1].weight.mul_(0.2)
    for embedding in (*sam.prompt_encoder.point_embeddings, sam.prompt_encoder.not_a_point_embed):
        embedding.weight.mul_(0.3)
    for layer in sam.mask_decoder.transformer.layers:
        attention = layer.cross_attn_image_to_token
        attention.q_proj.weight.mul_(3)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()
        attention.out_proj.weight.mul_(6)


def _read_out_masks(sam: Any, n_prompts: int = 24) -> None:
    """Solves for the four masks' readout vectors: a disc around the prompt, on features like the encoder's."""
    import torch
    from torch.nn.functional import interpolate

    points = 1024 * torch.rand(n_prompts, 1, 2)
    sparse, dense = sam.prompt_encoder(points=(points, torch.ones(n_prompts, 1)), boxes=None, masks=None)
    smooth = interpolate(torch.randn(1, 256, 16, 16), size=(64, 64), mode="bicubic")
    features = sam.image_encoder.neck[-1](0.8 * torch.randn(1, 256, 1, 1) + 0.6 * smooth)
    seen: list[torch.Tensor] = []
    decoder = sam.mask_decoder
    hook = decoder.output_upscaling.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    hook.remove()
    upscaled = seen[0].permute(0, 2, 3, 1).reshape(-1, 32)
    grid = torch.arange(256) * 4 + 2.0
    squared = (grid[None, :, None] - points[:, :, 1, None]) ** 2 + (grid[None, None] - points[:, :, 0, None]) ** 2
    for radius, readout in zip(_RADII, decoder.output_hypernetworks_mlps, strict=True):
        wanted = torch.where(squared.sqrt() < radius, 1.0, -1.0).reshape(-1, 1)
        weight = torch.where(wanted > 0, (wanted < 0).sum() / (wanted > 0).sum(), 1.0).sqrt()
        solution = torch.linalg.lstsq(upscaled * weight, wanted * weight).solution[:, 0]
        readout.layers[-1].weight.zero_()
        readout.layers[-1].bias.copy_(20 * solution)
    decoder.iou_prediction_head.layers[-1].bias.fill_(0.95)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--encoder-only", action="store_true")
    arguments = parser.parse_args()
    make_checkpoint(arguments.path, encoder_only=arguments.encoder_only)
