"""A micro-sam checkpoint (ViT-B or vit_t, with decoder) that needs no download: random weights that still find objects.

Random weights exercise all of micro-sam's code, but left alone they find nothing, or thousands of specks. Three things are
set by hand so that a block of 256-512 px has tens of objects:

1. The decoder's last layer is centred and made steeper, so that thresholds at 0.5 cut its three maps (ais, apg).
2. In the mask decoder, image tokens attend to the prompt that is near them, and a linear readout, solved by least squares
   on prompts at random places, turns that into a mask around the prompt (amg, apg).
3. The predicted IoU is about 0.9, so that default thresholds let masks through.

    python -m tests.support.microsam_checkpoint PATH [--model vit_t] [--encoder-only] [--small]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from micro_sam.instance_segmentation import get_unetr
from micro_sam.util import sam_model_registry
from torch.nn.functional import interpolate

# By (model, small): medians of the decoder's logits (foreground, centre and boundary distance) for seed 0, on scikit-image's
# immunohistochemistry(), and how much steeper they are made.
_LOGITS = {
    ("vit_b", False): ((0.082, 0.027, 0.172), 4.0),
    ("vit_b", True): ((-0.187, -0.165, 0.209), 8.0),
    ("vit_t", False): ((0.098, 0.088, -0.001), 10.0),
    ("vit_t", True): ((0.104, 0.185, 0.247), 12.0),
}
# Where medians are put instead.
_CENTRES = (0.5, -1.0, 0.5)
# Radii of the masks of the mask decoder's four outputs, in SAM's pixels (1024 per side).
_RADII = (70.0, 50.0, 70.0, 95.0)
# On how many images of random features, with how many prompts each, the readout is solved.
_N_IMAGES, _N_PROMPTS = 8, 8


def make_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: str = "vit_b",
    seed: int = 0,
    encoder_only: bool = False,
    small: bool = False,
) -> Path:
    """Writes the checkpoint in torch_em's layout, whole or not at all.

    Args:
        path: File to write, about 410 MB for ViT-B.
        model: vit_b or vit_t.
        seed: Of torch's generator; the constants above are for 0.
        encoder_only: Leave out the decoder, so that only amg works.
        small: For the networks of microsam_small.py, which this process then has.

    Returns:
        The path.
    """
    path = Path(path)
    if small:
        from tests.support.microsam_small import use_small_networks

        use_small_networks()
    medians, steepness = _LOGITS[model, small]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        sam = sam_model_registry[model]().eval()
        _place(sam.image_encoder, torch.Generator().manual_seed(seed + 1))
        unetr = get_unetr(sam.image_encoder, device="cpu")
        unetr.out_conv.bias.copy_(steepness * (unetr.out_conv.bias - torch.tensor(medians)) + torch.tensor(_CENTRES))
        unetr.out_conv.weight.mul_(steepness)
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


def _place(encoder: Any, generator: torch.Generator) -> None:
    """Random positions, which SAM initialises with zero (attention_biases in vit_t): without them code would find the same."""
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or "attention_biases" in name or name == "pos_embed":
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _look_near_prompts(sam: Any) -> None:
    """Similar weights for queries and keys, so that image tokens attend to the prompt that is near them.

    Image content is weakened and point embeddings too, so that positions decide.
    """
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


def _read_out_masks(sam: Any) -> None:
    """Solves for the four masks' readouts, on features like the encoder's, and lays them through the upscaling.

    A value travels as the pair (+v, -v), so that its sign comes through the layers' GELU.
    """
    decoder = sam.mask_decoder
    first, norm, _, second, _ = decoder.output_upscaling
    for layer in (first, second, *(readout.layers[-1] for readout in decoder.output_hypernetworks_mlps)):
        layer.weight.zero_()
        layer.bias.zero_()
    first.bias[-2:] = torch.tensor([8.0, -8.0])  # keeps the norm's scale from hanging on the values
    norm.weight.fill_(8.0)
    for output, solution in enumerate(_solve(sam)):
        positive, negative = 2 * output, 2 * output + 1
        first.weight[:, positive] = solution[:, None, None]
        first.weight[:, negative] = -solution[:, None, None]
        second.weight[positive, positive] = second.weight[negative, negative] = 1.0
        second.weight[negative, positive] = second.weight[positive, negative] = -1.0
        readout = decoder.output_hypernetworks_mlps[output].layers[-1]
        readout.bias[positive], readout.bias[negative] = 10.0, -10.0
    decoder.iou_prediction_head.layers[-1].bias.fill_(0.95)


def _solve(sam: Any) -> list[torch.Tensor]:
    """Per output of the mask decoder, (256,) weights on image tokens: positive within a radius of the prompt."""
    seen: list[torch.Tensor] = []
    hook = sam.mask_decoder.output_upscaling.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    points = 1024 * torch.rand(_N_IMAGES, _N_PROMPTS, 1, 2)
    for prompts in points:
        sparse, dense = sam.prompt_encoder(points=(prompts, torch.ones(_N_PROMPTS, 1)), boxes=None, masks=None)
        smooth = interpolate(torch.randn(1, 256, 16, 16), size=(64, 64), mode="bicubic")
        features = sam.image_encoder.neck[-1](0.8 * torch.randn(1, 256, 1, 1) + 0.6 * smooth)
        sam.mask_decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    hook.remove()
    tokens = torch.cat(seen).permute(0, 2, 3, 1).reshape(-1, 256)
    at = points.reshape(-1, 2)
    grid = torch.arange(64) * 16 + 8.0
    squared = (grid[None, :, None] - at[:, 1, None, None]) ** 2 + (grid[None, None] - at[:, 0, None, None]) ** 2
    solutions = []
    for radius in _RADII:
        wanted = torch.where(squared.sqrt() < radius, 1.0, -1.0).reshape(-1, 1)
        weight = torch.where(wanted > 0, 0.5 * (wanted < 0).sum() / (wanted > 0).sum(), 1.0)
        normal = tokens.T @ (tokens * weight) + torch.eye(256)
        solutions.append(torch.linalg.solve(normal, tokens.T @ (wanted * weight))[:, 0])
    return solutions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--model", default="vit_b", choices=("vit_b", "vit_t"))
    parser.add_argument("--encoder-only", action="store_true")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    make_checkpoint(arguments.path, model=arguments.model, encoder_only=arguments.encoder_only, small=arguments.small)
