"""Draw before-after.png: crops of clips that the shipped weights were not trained on.

    .venv/bin/python docs/images/before_after.py CLIP:FRAME:X,Y ... --out docs/images/before-after.png

Each clip's frame is halved, enlarged again by each method and shown beside the original, three times as large, pixel by
pixel. PSNR-Y of the crop stands under each picture.
"""

import argparse
from itertools import islice
from pathlib import Path

import av
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from model.data import shrink
from model.evaluation.baselines import bicubic
from model.metrics import psnr_y
from model.presets import load_upscaler

CROP_PX = (96, 64)
ZOOM = 3
CAPTION_PX = 22


def read_triplet(clip: Path, frame: int) -> Tensor:
    """(3, 3, H, W) uint8: the frame between its neighbours, H and W even."""
    with av.open(clip) as container:
        frames = [picture.to_ndarray(format="rgb24") for picture in islice(container.decode(video=0), frame + 2)]
    triplet = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in frames[frame - 1 : frame + 2]])
    return triplet[..., : triplet.shape[-2] // 2 * 2, : triplet.shape[-1] // 2 * 2]


def row(clip: Path, frame: int, x: int, y: int) -> list[tuple[str, Image.Image]]:
    hr = read_triplet(clip, frame)
    previous_lr, center_lr, next_lr = (shrink(hr).float() / 255).split(1)
    upscaler = load_upscaler("aligned", torch.device("cpu"), None)
    with torch.inference_mode():
        results = {
            "bicubic": bicubic(center_lr),
            "HAT alone": upscaler.enlarge(center_lr),
            "two steps": upscaler(previous_lr, center_lr, next_lr),
        }
    here = (..., slice(y, y + CROP_PX[1]), slice(x, x + CROP_PX[0]))
    true = hr[1:2].float()[here] / 255
    pictures = []
    for name, enlarged in results.items():
        crop = enlarged.clamp(0, 1)[here]
        pictures.append((f"{name}  {psnr_y(crop, true, border_px=0).item():.2f} dB", to_image(crop)))
    pictures.append(("original", to_image(true)))
    return pictures


def to_image(crop: Tensor) -> Image.Image:
    pixels = (crop[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((CROP_PX[0] * ZOOM, CROP_PX[1] * ZOOM), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", metavar="CLIP:FRAME:X,Y", help="left top corner in the original's pixels")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    width, height = CROP_PX[0] * ZOOM, CROP_PX[1] * ZOOM + CAPTION_PX
    columns = 4  # three enlargements and the original
    sheet = Image.new("RGB", (columns * (width + 6) - 6, len(arguments.places) * (height + 6) - 6), "white")
    draw = ImageDraw.Draw(sheet)
    for line, place in enumerate(arguments.places):
        clip, frame, corner = place.rsplit(":", 2)
        x, y = map(int, corner.split(","))
        for column, (caption, picture) in enumerate(row(Path(clip), int(frame), x, y)):
            left, top = column * (width + 6), line * (height + 6)
            sheet.paste(picture, (left, top))
            draw.text((left + 2, top + height - CAPTION_PX + 4), caption, fill="black", font_size=14)
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
