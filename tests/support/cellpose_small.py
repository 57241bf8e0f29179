"""Weights for Cellpose 4 that need no download, in a small network, random but for its last layer, which is solved for.

SAM's ViT-L in Cellpose becomes two blocks of 192 channels; all around them is Cellpose's own. Left alone, random weights find
nothing or specks; the last layer, fitted by least squares to the flows of drawn discs, makes them find such discs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.support.discs import draw_discs

RIDGE = 1e-2


def use_small_network(setitem) -> None:
    """From now on Cellpose makes small networks; `setitem` puts them into SAM's registry, as monkeypatch.setitem does."""
    from segment_anything import sam_model_registry

    # The package has a function of the module's name.
    build = sys.modules["segment_anything.build_sam"]._build_sam
    size = {"encoder_embed_dim": 192, "encoder_depth": 2, "encoder_num_heads": 3, "encoder_global_attn_indexes": [0, 1]}
    setitem(sam_model_registry, "vit_l", lambda checkpoint=None: build(**size, checkpoint=checkpoint))


def make_weights(path: Path, seed: int = 0) -> Path:
    """Writes the state of such a network as Cellpose saves it; `use_small_network` has to be in force."""
    import torch
    from cellpose.dynamics import labels_to_flows
    from cellpose.vit import CPSAM

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = CPSAM().eval()
        seen: list[torch.Tensor] = []
        hook = net.out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        wanted = []
        for number in range(8):
            image, labels = draw_discs((256, 256), seed=100 + number)
            pixels = (image.astype(np.float32) - 1000) / 3000
            net(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
            flows = labels_to_flows([labels], device=torch.device("cpu"))[0]
            # Cellpose divides flows by 5, and takes pixels above 0 for cells.
            wanted.append(np.stack([5 * flows[2], 5 * flows[3], np.where(labels > 0, 4.0, -4.0)]))
        hook.remove()
        net.out.weight[..., 0, 0], net.out.bias[:] = _solve(torch.cat(seen), np.stack(wanted))
        torch.save(net.state_dict(), path)
    return path


def _solve(tokens, wanted):
    """Weights and bias of the layer that turns tokens, (n, c, 32, 32), into 8 × 8 px of each of three maps."""
    import torch

    features = tokens.permute(0, 2, 3, 1).reshape(-1, tokens.shape[1]).double()
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    n = len(wanted)
    pieces = torch.from_numpy(wanted.astype(np.float64)).reshape(n, 3, 32, 8, 32, 8)
    targets = pieces.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * 64)
    normal = features.T @ features + RIDGE * torch.eye(features.shape[1])
    solution = torch.linalg.solve(normal, features.T @ targets).float()
    return solution[:-1].T, solution[-1]
