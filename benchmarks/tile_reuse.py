"""What `--reuse` is worth: tiled mode with it and without it in turns, on a drawn recording of a screen and on film.

    .venv/bin/python benchmarks/tile_reuse.py --preset aligned --tiles 64 128 256 [--film FILE]

The recording is drawn here: a page of text, a blinking cursor, typing, and now and then a scroll. Prints medians of the
networks' seconds per frame, and fails unless both results are equal in every bit. Whole frames are shown beside it.
"""

import argparse
import statistics
import time
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from worker.loaded_models import LoadedModels
from worker.rendering import Rendering
from worker.tile_reuse import ReusingUpscaler
from worker.upscaler import FrameBatch, Upscaler

_LINE_PX, _LETTER_PX = 16, 8


def screen_recording(count: int, width: int, height: int) -> list[FrameBatch]:
    """(1, H, W, 3) each: a letter is typed every third frame, the cursor blinks, and once the page scrolls."""
    random = np.random.default_rng(0)
    lines, letters = height // _LINE_PX + 1, width // _LETTER_PX
    page = np.full((lines * _LINE_PX, width, 3), 245, np.uint8)
    for line in range(lines):
        for letter in range(random.integers(letters // 4, letters - 2)):
            _draw_letter(page, line, letter, random)
    frames: list[FrameBatch] = []
    for number in range(count):
        if number == count // 2:
            page = np.roll(page, -_LINE_PX, axis=0)
        if number % 3 == 0:
            _draw_letter(page, lines // 2, number // 3, random)
        frame = page[:height].copy()
        if number // 6 % 2:
            top, left = lines // 2 * _LINE_PX, (number // 3 + 1) * _LETTER_PX
            frame[top : top + 12, left : left + 2] = 0
        frames.append(frame[None])
    return frames


def _draw_letter(page: npt.NDArray[np.uint8], line: int, letter: int, random: np.random.Generator) -> None:
    dots = random.integers(0, 2, (6, 3), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)[..., None]
    top, left = line * _LINE_PX, letter * _LETTER_PX
    page[top : top + 12, left : left + 6] = np.where(dots, np.uint8(30), np.uint8(245))


def film(path: Path, count: int) -> list[FrameBatch]:
    """The first frames of a video, (1, H, W, 3) each."""
    with av.open(path) as container:
        frames: list[FrameBatch] = []
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24")[None].astype(np.uint8))
            if len(frames) == count:
                break
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="aligned")
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--size", default="640x360", help="of the drawn recording")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--film", type=Path, help="instead of the recording")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    frames = (
        film(arguments.film, arguments.frames) if arguments.film else screen_recording(arguments.frames, width, height)
    )
    models = LoadedModels(torch.device("cpu"), Path("/nonexistent"), None)
    whole = models.get(arguments.preset, Rendering(batch_frames=1))
    whole(frames[0], frames[0], frames[0])
    began = time.perf_counter()
    whole(frames[0], frames[1], frames[2])
    whole_seconds = time.perf_counter() - began

    print("| tile | reused | tiled, s/frame | with reuse | ratio | whole frames |\n" + "| --- " * 6 + "|")
    for tile_px in arguments.tiles:
        rendering = Rendering(batch_frames=1, tile_px=tile_px)
        ratios, tiled_means, reusing_means = [], [], []
        for _ in range(arguments.rounds):
            expected: list[FrameBatch] = []
            found: list[FrameBatch] = []
            tiled = models.get(arguments.preset, rendering)
            reusing = models.get(arguments.preset, rendering, reuse=True)
            assert isinstance(reusing, ReusingUpscaler)
            before, after = 0.0, 0.0
            for first in range(0, len(frames), 4):  # in turns: a neighbour's load meets both
                shown = [frames[min(max(0, place), len(frames) - 1)] for place in range(first - 1, first + 5)]
                triplets = list(zip(shown, shown[1:], shown[2:], strict=False))[: len(frames) - first]
                turns: list[tuple[Upscaler, list[FrameBatch]]] = [(tiled, expected), (reusing, found)]
                for upscaler, results in turns:
                    began = time.perf_counter()
                    results.extend(upscaler(*triplet) for triplet in triplets)
                    if results is expected:
                        before += time.perf_counter() - began
                    else:
                        after += time.perf_counter() - began
            if not all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True)):
                raise SystemExit(f"tiles of {tile_px} px: the results differ")
            tiled_means.append(before / len(frames))
            reusing_means.append(after / len(frames))
            ratios.append(before / after)
            share = reusing.tiles_reused / (reusing.tiles_reused + reusing.tiles_computed)
        cells = [f"{tile_px}", f"{share:.1%}", f"{statistics.median(tiled_means):.3f}"]
        cells += [f"{statistics.median(reusing_means):.3f}", f"{statistics.median(ratios):.2f}", f"{whole_seconds:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
