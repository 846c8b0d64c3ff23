"""Does it matter that the published decoder goes up four times, not five? Two U-Nets, one budget.

The paper has five upsamplings. Its code has four: the map that leaves the bottleneck is doubled once, padded with
zeros to twice its size, and joined to the features of the level above the one it fits, so that what was fused reaches
the middle half of each axis alone (method: section 3). Both networks here have five levels at a small width, differ in
nothing but the decoder, and see the same patches in the same order behind the same frozen HAT.

    python benchmarks/decoder_geometry.py DATA --cache CACHE --condition jpeg:quality=75 --steps 2000
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoints import load_checkpoint
from model.data import Dataset
from model.evaluation.contenders import as_served
from model.evaluation.sweep import Scorer
from model.sampling import TripletSampler
from model.training.losses import mae
from model.training.presets import shipped_hat
from model.unet import ConditionalUNet, UNetConfig, double_convolution, initialise

SMALL_PAPER = UNetConfig(width=8, levels=5)
CENTERS_PER_SEQUENCE = 5
PATCH_PX = 64


class PublishedDecoder(nn.Module):
    """Four upsamplings for five downsamplings; takes and returns what `model.unet.Decoder` does."""

    def __init__(self, channels: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        # The skip of the second deepest level is never used: the map meets the one above it.
        here = channels[-3::-1]
        below = (channels[-1], *here[:-1])
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(below, here, strict=True))
        self.blocks = nn.ModuleList(double_convolution(2 * b, b, batch_norm) for b in here)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                initialise(layer)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for doubling, block, skip in zip(self.doublings, self.blocks, skips[-2::-1], strict=True):
            doubled = doubling(x)
            rows, columns = skip.shape[-2] - doubled.shape[-2], skip.shape[-1] - doubled.shape[-1]
            padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            x = block(torch.cat((skip, F.pad(doubled, padding)), dim=1))
        return x


def network(decoder: str, output: Literal["direct", "residual"]) -> ConditionalUNet:
    unet = ConditionalUNet(replace(SMALL_PAPER, output=output))
    if decoder == "published":
        unet.psi_decoder = PublishedDecoder(SMALL_PAPER.channels, SMALL_PAPER.batch_norm)  # type: ignore[assignment]
    return unet


def trained(unet: ConditionalUNet, sampler: TripletSampler, steps: int, batch_size: int) -> ConditionalUNet:
    unet.train()
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = sampler.batch(batch_size)
        assert batch.center_sr is not None
        loss = mae(unet(batch.center_sr, batch.previous_lr, batch.next_lr), batch.target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        rate.step()
    return unet.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--condition", default="clean")
    parser.add_argument("--output", choices=("direct", "residual"), default="direct")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cache", type=Path, required=True, help="folder for HAT's outputs")
    arguments = parser.parse_args()

    hat_file = shipped_hat("compact")
    assert hat_file is not None
    _, hat, _ = load_checkpoint(hat_file)
    dataset, cpu = Dataset.open(arguments.data), torch.device("cpu")
    scorer = Scorer(dataset, hat, "val", [arguments.condition], CENTERS_PER_SEQUENCE, arguments.cache, cpu)
    scorer.fill_cache(hat)
    scorer.cache.fill(dataset, dataset.split("train"), [arguments.condition], partial(as_served, hat), cpu)

    rgb_db, y_db = scorer.score(None)[arguments.condition].values()
    print(f"| decoder | parameters | PSNR-RGB (dB), seeds 0 to {arguments.seeds - 1} | mean | PSNR-Y mean |")
    print("|---|---|---|---|---|")
    print(f"| HAT alone | | {rgb_db:.2f} | {rgb_db:.2f} | {y_db:.2f} |")
    for decoder in ("five", "published"):
        found = []
        for seed in range(arguments.seeds):
            sampler = TripletSampler(
                dataset, PATCH_PX, seed, conditions={arguments.condition: 1.0}, enlarged=scorer.cache
            )
            torch.manual_seed(seed)
            unet = trained(network(decoder, arguments.output), sampler, arguments.steps, arguments.batch_size)
            found.append(scorer.score(unet)[arguments.condition].values())
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        each = ", ".join(f"{rgb:.2f}" for rgb, _ in found)
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        print(f"| {decoder} | {parameters / 1e6:.2f} M | {each} | {means[0]:.2f} | {means[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
