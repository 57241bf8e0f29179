#!/usr/bin/env python3
"""Trains micro-sam's vit_t (MobileSAM's TinyViT) with its AIS decoder from scratch on nuclei_cc0, on a GPU or a CPU.

    python training/train.py --data nuclei_cc0 --out OUT --minutes 8

Crops are taken at the images' own scale: 1024 px of a slide are one field of SAM, not enlarged. TinyViT's attention is
windowed and has no absolute positions, so weights trained on small crops serve at 1024 px. Most steps see crops of 256 px;
the last part sees 512 px, as the decoder normalises each field by its own statistics, which hang on the field's size.

micro-sam runs the encoder in eval mode and the decoder in train mode, one field at a time. So the encoder's batch
normalisation is trained as such, and the decoder's normalises each crop alone.

What is saved is a running average of the weights, as float16 in parts of at most 12 MB, with the curve beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

# Share of the crops that are of a kind of image: brightfield has four images only.
SHARES = {"fluo": 0.50, "he": 0.42, "bright": 0.08}
# (part of the time after which it begins, side of the crops in px, crops per GPU step)
PHASES = ((0.0, 256, 64), (0.7, 512, 16))
# Optical densities of haematoxylin, eosin and a residual, one per row (Ruifrok and Johnston 2001).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
PART_BYTES = 12e6


# --------------------------------------------------------------------------------------------------------------- network
def encoder(side: int) -> nn.Module:
    """MobileSAM's image encoder for fields of side x side px."""
    from mobile_sam.modeling.tiny_vit_sam import TinyViT

    net = TinyViT(
        img_size=side, in_chans=3, num_classes=1000, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.1,
        use_checkpoint=False, mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
    )  # fmt: skip

    def forward(x: torch.Tensor) -> torch.Tensor:
        # MobileSAM's own forward takes the grid for 64 x 64.
        x = net.patch_embed(x)
        for layer in net.layers:
            x = layer(x)
        batch, tokens, channels = x.shape
        grid = math.isqrt(tokens)
        return net.neck(x.view(batch, grid, grid, channels).permute(0, 3, 1, 2))

    net.forward = forward
    return net


def unetr(side: int) -> nn.Module:
    """micro-sam's AIS network: foreground, distance to the centre and distance to the boundary."""
    from torch_em.model import UNETR

    net = UNETR(
        backbone="sam", encoder=encoder(side), out_channels=3, use_sam_stats=True, final_activation="Sigmoid",
        use_skip_connection=False, resize_input=True, use_conv_transpose=False,
    )  # fmt: skip
    net.perform_range_checks = False
    return net


def use_side(net: nn.Module, side: int) -> None:
    """Makes the network take fields of another side; all weights stay."""
    factor = side / net.encoder.img_size
    for module in net.encoder.modules():
        if hasattr(module, "input_resolution"):
            module.input_resolution = tuple(round(length * factor) for length in module.input_resolution)
    net.encoder.img_size = side


def batch_norms(net: nn.Module, of_encoder: bool) -> list[nn.BatchNorm2d]:
    """The batch normalisations of the encoder, or those of the decoder."""
    return [
        module for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.startswith("encoder.") == of_encoder
    ]  # fmt: skip


def normalise_crops_alone(net: nn.Module) -> None:
    """Lets the decoder normalise by each crop's own statistics, as micro-sam runs it; running ones are kept, too."""
    for module in batch_norms(net, of_encoder=False):

        def forward(x: torch.Tensor, m: nn.BatchNorm2d = module) -> torch.Tensor:
            with torch.no_grad():
                variance, mean = torch.var_mean(x.detach()[:4].float(), (0, 2, 3))
                m.running_mean.lerp_(mean, 0.01)
                m.running_var.lerp_(variance, 0.01)
            return functional.instance_norm(x, weight=m.weight, bias=m.bias, eps=m.eps)

        module.forward = forward


class RunningAverage:
    """A network's weights and statistics, averaged over the last steps."""

    def __init__(self, net: nn.Module) -> None:
        self.state = {name: value.detach().clone() for name, value in net.state_dict().items()}
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        self._slow, self._fast = [self.state[name] for name in names], [net.state_dict()[name] for name in names]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take the weights of a step into the average."""
        keep = min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(self._slow, self._fast, 1 - keep)


# ------------------------------------------------------------------------------------------------------------------ data
def read(data: Path, row: dict) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (height, width, 3), and its labels, int64 (height, width)."""
    image = np.asarray(Image.open(data / f"{row['id']}.png"))
    labels = np.asarray(Image.open(data / f"{row['id']}_labels.png")).astype("int64")
    return (np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3]), labels


def with_maps(job: tuple[Path, dict]) -> np.ndarray:
    """Image and target maps of one row of the index, float32 (6, height, width)."""
    from torch_em.transform.label import PerObjectDistanceTransform

    image, labels = read(*job)
    maps = PerObjectDistanceTransform(
        distances=True, boundary_distances=True, directed_distances=False, foreground=True, instances=False, min_size=10
    )(labels)
    return np.concatenate([image.transpose(2, 0, 1).astype("float32"), maps.astype("float32")])


class Crops:
    """Draws batches of crops, augmented on the device."""

    def __init__(self, data: Path, rows: list[dict], device: torch.device, seed: int) -> None:
        self.device, self.rng = device, np.random.default_rng(seed)
        self.pairs, self.highs, self.of_kind = [], [], {}
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for row, pair in zip(rows, pool.map(with_maps, [(data, row) for row in rows], chunksize=4), strict=True):
                self.of_kind.setdefault(row["kind"], []).append(len(self.pairs))
                self.pairs.append(torch.from_numpy(pair).to(device)[None])
                self.highs.append(max(float(np.percentile(pair[0], 99.9)), 8.0))
        stains = torch.tensor(STAINS, device=device)
        self.stains = stains / stains.norm(dim=1, keepdim=True)
        self.unmix = torch.linalg.inv(self.stains)

    def draw(self, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, float32 (count, 3, side, side) from 0 to 255, and target maps of the same shape."""
        kinds = self.rng.choice(list(SHARES), count, p=list(SHARES.values()))
        chosen = [int(self.rng.choice(self.of_kind[kind])) for kind in kinds]
        theta = torch.from_numpy(
            np.stack([self._place(self.pairs[i].shape[2:], side) for i in chosen]).astype("float32")
        )
        grids = functional.affine_grid(theta.to(self.device), [count, 1, side, side], align_corners=False)
        cut = torch.cat([
            functional.grid_sample(
                self.pairs[i], grids[n : n + 1], mode="bilinear", padding_mode="reflection", align_corners=False
            )
            for n, i in enumerate(chosen)
        ])  # fmt: skip
        return self._augment(cut[:, :3], kinds, [self.highs[i] for i in chosen]), cut[:, 3:]

    def _place(self, shape: tuple[int, int], side: int) -> np.ndarray:
        """Where a crop lies: the affine map from its coordinates (-1 to 1) to those of the image, (2, 3)."""
        rng, (height, width) = self.rng, shape
        zoom = math.exp(rng.uniform(math.log(0.6), math.log(1.8)))
        tall, wide = (side / 2 / zoom * math.exp(rng.uniform(-0.12, 0.12)) for _ in range(2))
        angle = math.radians(rng.integers(4) * 90 + (rng.uniform(-30, 30) if rng.random() < 0.4 else 0))
        flip = rng.choice([-1.0, 1.0])
        cos, sin = math.cos(angle), math.sin(angle)
        centre = [
            float(np.clip(rng.uniform(0, length), min(half, length / 2), max(length - half, length / 2)))
            for length, half in ((height, tall), (width, wide))
        ]
        return np.array([
            [wide * cos * flip * 2 / width, -tall * sin * 2 / width, 2 * centre[1] / width - 1],
            [wide * sin * flip * 2 / height, tall * cos * 2 / height, 2 * centre[0] / height - 1],
        ])  # fmt: skip

    def _chance(self, share: float, among: np.ndarray | None = None) -> torch.Tensor:
        """Which crops an augmentation is done to, bool (count, 1, 1, 1)."""
        chosen = self.rng.random(self.count) < share
        chosen = chosen if among is None else chosen & among
        return torch.from_numpy(chosen).to(self.device)[:, None, None, None]

    def _uniform(self, low: float, high: float, channels: int = 1) -> torch.Tensor:
        """One random number per crop and channel, float32 (count, channels, 1, 1)."""
        drawn = self.rng.uniform(low, high, (self.count, channels, 1, 1)).astype("float32")
        return torch.from_numpy(drawn).to(self.device)

    def _augment(self, seen: torch.Tensor, kinds: np.ndarray, highs: list[float]) -> torch.Tensor:
        from torchvision.transforms.functional import gaussian_blur

        self.count = len(kinds)
        fluo, he = kinds == "fluo", kinds == "he"
        everywhere = torch.from_numpy(fluo).to(self.device)[:, None, None, None]
        stretch = 255 / torch.tensor(highs, device=self.device)[:, None, None, None] * self._uniform(0.6, 1.15)
        seen = torch.where(everywhere, (seen * stretch).clamp(0, 255), seen)
        haze = self._uniform(0, 0.3)
        seen = torch.where(self._chance(0.2, fluo), seen * (1 - haze) + 255 * haze, seen)
        seen = torch.where(self._chance(0.7, he), self._other_stain(seen), seen)
        coloured = seen * self._uniform(0.85, 1.12, 3) + self._uniform(-12, 12)
        seen = torch.where(everywhere, seen, coloured.clamp(0, 255))
        grey = (seen * torch.tensor([0.299, 0.587, 0.114], device=self.device)[:, None, None]).sum(1, keepdim=True)
        seen = torch.where(self._chance(0.2, he), grey.expand_as(seen), seen)
        seen = torch.where(self._chance(0.05, he), seen.flip(1), seen)
        seen = torch.where(self._chance(0.4), 255 * (seen / 255).clamp(1e-4, 1) ** self._uniform(0.6, 1.6), seen)
        seen = torch.where(self._chance(0.15, ~he) | self._chance(0.03), 255 - seen, seen)
        blurred = self._chance(0.25).flatten().nonzero().flatten()
        if len(blurred):
            seen[blurred] = gaussian_blur(seen[blurred], 7, float(self.rng.uniform(0.5, 1.6)))
        noise = torch.randn(seen.shape, device=self.device) * self._uniform(1, 8)
        return torch.where(self._chance(0.3), (seen + noise).clamp(0, 255), seen)

    def _other_stain(self, seen: torch.Tensor) -> torch.Tensor:
        """Each stain's amount scaled and shifted (Tellez et al. 2018)."""
        density = -torch.log((seen + 1) / 256)
        amount = torch.einsum("nchw,cs->nshw", density, self.unmix)
        amount = amount * self._uniform(0.6, 1.5, 3) + self._uniform(-0.06, 0.06, 3)
        return (256 * torch.exp(-torch.einsum("nshw,sc->nchw", amount, self.stains)) - 1).clamp(0, 255)


# -------------------------------------------------------------------------------------------------------------- training
def save(state: dict[str, torch.Tensor], out: Path, facts: dict) -> None:
    """Writes the weights as float16 in parts, and facts.json."""
    parts, size = [{}], 0
    for name, value in state.items():
        value = value.half().cpu().clone() if value.is_floating_point() else value.cpu()
        if size + value.numel() * 2 > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += value.numel() * 2
    for number, part in enumerate(parts):
        torch.save(part, out / f"unetr_part{number}.pt")
    (out / "facts.json").write_text(json.dumps(facts, indent=1))


class Training:
    """The loop: learning rate by the clock, so that it ends when its minutes do."""

    def __init__(self, given: argparse.Namespace, crops: Crops, device: torch.device, limit: float) -> None:
        from torch_em.loss.distance_based import DiceBasedDistanceLoss

        self.given, self.crops, self.device, self.limit = given, crops, device, limit
        self.net = unetr(PHASES[0][1])
        if given.start:
            state = {}
            for part in sorted(given.start.glob("unetr_part*.pt")):
                state.update(torch.load(part, map_location="cpu"))
            self.net.load_state_dict(state)
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.net.to(device, memory_format=self.layout)
        normalise_crops_alone(self.net)
        self.net.train()
        for module in batch_norms(self.net, of_encoder=True):
            module.train(not given.freeze_norm)
        self.average = RunningAverage(self.net)
        self.loss_of = DiceBasedDistanceLoss(mask_distances_in_bg=True)
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=given.rate, fused=device.type == "cuda")

    def step(self, images: torch.Tensor, wanted: torch.Tensor, rate: float) -> torch.Tensor:
        """One step of the optimiser; the loss, on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            maps = self.net(images.contiguous(memory_format=self.layout))
        loss = self.loss_of(maps.float(), wanted)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        return loss.detach()

    def run(self) -> dict:
        """Trains to the limit; the facts of the run."""
        begun, step, seen, losses, curve, phase = time.time(), 0, 0, [], [], -1
        while (elapsed := time.time() - begun) < self.limit:
            now = max(n for n, (after, _, _) in enumerate(PHASES) if elapsed >= after * self.limit)
            if now != phase:
                phase, (_, side, count) = now, PHASES[now]
                use_side(self.net, side)
                count = count if self.given.batch is None else max(1, self.given.batch * count // PHASES[0][2])
                print(f"crops of {side} px, {count} a step", flush=True)
            rate = self.given.rate * min(1, (step + 1) / 200)
            rate *= 0.5 * (1 + math.cos(math.pi * elapsed / self.limit)) * 0.99 + 0.01
            losses.append(self.step(*self.crops.draw(count, side), rate))
            self.average.follow(step)
            step, seen = step + 1, seen + count
            if step % 50 == 0:
                curve.append((step, round(elapsed, 1), round(float(torch.stack(losses[-50:]).mean()), 4)))
                print(*curve[-1], flush=True)
            if step % 1500 == 0:
                save(self.average.state, self.given.out, {"step": step, "crops": seen, "curve": curve})
        return {"step": step, "crops": seen, "seconds": round(time.time() - begun), "curve": curve}


def main() -> None:
    """Read the images, train until the minutes are over, and save."""
    started = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder nuclei_cc0")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and curve")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it, reading included")
    parser.add_argument("--batch", type=int, help="crops of 256 px a step, 64 by default")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="folder of unetr_part*.pt to go on from")
    parser.add_argument(
        "--freeze-norm", action="store_true", help="keep the encoder's statistics: for batches below 16, with --start"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(given.device)
    torch.manual_seed(given.seed)
    torch.backends.cudnn.benchmark = True
    rows = json.loads((given.data / "index.json").read_text())
    crops = Crops(given.data, [row for row in rows if row["split"] == "train"], device, given.seed)
    print(
        f"{time.time() - started:.0f} s: { ({kind: len(found) for kind, found in crops.of_kind.items()}) }", flush=True
    )
    training = Training(given, crops, device, given.minutes * 60 - (time.time() - started))
    facts = training.run()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    facts |= {"seed": given.seed, "rate": given.rate, "device": name, "torch": torch.__version__}
    save(training.average.state, given.out, facts)
    print({key: value for key, value in facts.items() if key != "curve"}, flush=True)


if __name__ == "__main__":
    main()
