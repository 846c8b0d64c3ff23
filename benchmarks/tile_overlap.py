"""What tiles cost in truth and in time, by their size and overlap, against whole frames of real video.

    .venv/bin/python benchmarks/tile_overlap.py CLIP... --presets compact aligned balanced

From the middle of each clip three frames of at most 320x180 px are cut out. Prints the largest and the mean difference
in 8-bit levels over all clips, before rounding, and how much longer the tiles took than the whole frame.
"""

import argparse
import time
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from model.presets import load_upscaler


def triplet(path: Path, width: int, height: int, at_frame: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three consecutive frames, (1, 3, H, W) in [0, 1], cut out of the middle of the picture."""
    frames = []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= at_frame:
                rgb = frame.to_ndarray(format="rgb24")
                top, left = max(0, rgb.shape[0] - height) // 2, max(0, rgb.shape[1] - width) // 2
                frames.append(torch.from_numpy(rgb[top : top + height, left : left + width].copy()))
            if len(frames) == 3:
                break
    previous_lr, center_lr, next_lr = (frame.permute(2, 0, 1)[None].float() / 255 for frame in frames)
    return previous_lr, center_lr, next_lr


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--presets", nargs="+", default=["compact", "aligned", "balanced"])
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[16, 32, 48, 64])
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--at-frame", type=int, default=3)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    shown = [triplet(clip, width, height, arguments.at_frame) for clip in arguments.clips]

    print("| preset | tile | overlap | largest | mean | over one level | time |\n" + "| --- " * 7 + "|")
    for preset in arguments.presets:
        networks = load_upscaler(preset, torch.device("cpu"), None)
        networks.use_tiles(None)
        networks(*shown[0])
        began = time.perf_counter()
        wholes = [networks(*frames) for frames in shown]
        whole_seconds = time.perf_counter() - began
        for tile_px in arguments.tiles:
            for overlap_px in arguments.overlaps:
                networks.use_tiles(tile_px, overlap_px)
                began = time.perf_counter()
                tiled = [networks(*frames) for frames in shown]
                ratio = (time.perf_counter() - began) / whole_seconds
                errors = [255 * (one - other).abs().flatten().numpy() for one, other in zip(tiled, wholes, strict=True)]
                error = np.concatenate(errors)
                cells = [preset, f"{tile_px}", f"{overlap_px}", f"{error.max():.2f}", f"{error.mean():.4f}"]
                cells += [f"{(error > 1).mean():.3%}", f"{ratio:.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
