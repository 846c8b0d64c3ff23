"""The picture that all generated videos show: flat colours, in which a wrong level shows, and the frame's number."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.fidelity.witness import ACCURATE, ffmpeg

WIDTH, HEIGHT = 64, 48
FRAMES = 24
COPY = ("-c", "copy")
LOSSLESS_H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0")

_BAR_COLOURS = ((3, 3, 3), (3, 3, 0), (0, 3, 3), (0, 3, 0), (3, 0, 3), (3, 0, 0), (0, 0, 3), (1, 2, 1))
_GROUND, _BLOCK = 0.35, 0.65


def chart(number: int, width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[np.float64]:
    """RGB of 0 to 1, (H, W, 3): eight bars of 75 % in two rows; below them a block that tells the frame.

    It leaps by more than its own width, and changes its brightness, so that no two of many frames look alike.
    """
    picture = np.full((height, width, 3), _GROUND)
    for bar, colour in enumerate(_BAR_COLOURS):
        row, column = divmod(bar, 4)
        top, bottom = row * height // 3, (row + 1) * height // 3
        left, right = column * width // 4, (column + 1) * width // 4
        picture[top:bottom, left:right] = np.array(colour) / 4
    block = width // 4
    left = number * (width // 3) % max(width - block, 1)
    picture[2 * height // 3 :, left : left + block] = _BLOCK + number % 5 / 20
    return picture


def flat(number: int, width: int, height: int) -> npt.NDArray[np.float64]:
    """One colour all over, another one in every frame."""
    colour = np.array([0.2 + number % 7 / 10, 0.8 - number % 5 / 10, 0.3 + number % 3 / 5])
    return np.broadcast_to(colour, (height, width, 3))


def write_chart(
    path: Path,
    *arguments: str | Path,
    frames: int = FRAMES,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rate: str = "25",
    depth: int = 8,
    picture: object = chart,
    alpha: bool = False,
    quiet: bool = True,
) -> Path:
    """Have ffmpeg encode the chart as its input 0, with `arguments` between input and output."""
    width, height = size
    deep = depth > 8
    pictures = np.stack([picture(number, width, height) for number in range(frames)])  # type: ignore[operator]
    if alpha:
        # Four steps from opaque at the left to clear at the right.
        steps = 1 - np.arange(width) * 4 // width / 3
        pictures = np.concatenate([pictures, np.broadcast_to(steps[:, None], (frames, height, width, 1))], axis=-1)
    raw = (pictures * (65535 if deep else 255)).round().astype("<u2" if deep else np.uint8).tobytes()
    pixel_format = ("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")
    source = ("-f", "rawvideo", "-pix_fmt", pixel_format, "-s", f"{width}x{height}", "-r", rate, "-i", "-")
    ffmpeg(*source, *arguments, "-sws_flags", ACCURATE, path, stdin=raw, quiet=quiet)
    return path


def tone(seconds: float = 1.0, pitch: int = 440, options: str = "") -> tuple[str, ...]:
    """An ffmpeg input: one channel of sound."""
    return ("-f", "lavfi", "-i", f"sine={pitch}:duration={seconds}:sample_rate=48000{options}")
