"""What happens to video before anybody enlarges it: named conditions for training, drawn from a seed.

A condition is written as its steps, joined by `+`, each a kind and what it takes from a range or exactly:

    h264:crf=18-34                     H.264 as a sequence (x264, medium), crf 0 to 51; usual 18 to 34
    hevc:crf=20-36                     HEVC as a sequence (x265, medium), crf 0 to 51; usual 20 to 36
    vp9:crf=24-45                      VP9 as a sequence (libvpx), crf 0 to 63; usual 24 to 45
    jpeg:quality=30-95                 every frame by itself, libjpeg's quality 1 to 100; usual 30 to 95
    noise:sigma=1-10                   Gaussian, independent per pixel and channel, in levels of 8 bits, 0 to 50
    chroma:420                         to 4:2:0 (or 4:2:2: `chroma:422`) and back; all codecs above do so too
    noise:sigma=1-5+h264:crf=20-32     noise, then H.264

A parameter is drawn once per sequence, from the seed, the sequence's name and the condition, and is recorded.
"""

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.recompress import LossyCodec, RgbFrames, recompress, subsample_chroma

Transform = Callable[[RgbFrames, float, np.random.Generator], RgbFrames]
"""Frames (T, H, W, 3) uint8, the drawn parameter and a source of chance to frames of the same shape."""


@dataclass(frozen=True)
class Kind:
    """A kind of degradation: what its parameter is called, its whole range, and whether it has whole values only."""

    parameter: str
    least: float
    most: float
    whole: bool
    apply: Transform


def add_noise(frames: RgbFrames, sigma: float, chance: np.random.Generator) -> RgbFrames:
    """Gaussian noise of `sigma` levels, rounded and clipped to 8 bits."""
    noisy = frames + sigma * chance.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def through_jpeg(frames: RgbFrames, quality: float, _: np.random.Generator) -> RgbFrames:
    """Each frame a JPEG of its own: 4:2:0, libjpeg's tables."""
    # Here, not above: only training installs Pillow.
    from PIL import Image

    def once(frame: RgbFrames) -> RgbFrames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
        return np.asarray(Image.open(file, formats=["JPEG"]))

    return np.stack([once(frame) for frame in frames])


def _through(codec: LossyCodec) -> Transform:
    return lambda frames, crf, _: recompress(frames, codec, int(crf)).frames


KINDS = {
    "h264": Kind("crf", 0, 51, True, _through(LossyCodec.H264)),
    "hevc": Kind("crf", 0, 51, True, _through(LossyCodec.HEVC)),
    "vp9": Kind("crf", 0, 63, True, _through(LossyCodec.VP9)),
    "jpeg": Kind("quality", 1, 100, True, through_jpeg),
    "noise": Kind("sigma", 0, 50, False, add_noise),
}
CHROMA_FORMATS = {"420": "yuv420p", "422": "yuv422p"}


@dataclass(frozen=True)
class Step:
    """One kind with the range its parameter is drawn from, both ends included; or chroma subsampling."""

    kind: str
    least: float = 0
    most: float = 0
    chroma: str = ""

    def apply(self, frames: RgbFrames, drawn: random.Random) -> tuple[RgbFrames, str]:
        """The frames after it, and what was drawn, as "crf=23"."""
        if self.kind == "chroma":
            return subsample_chroma(frames, CHROMA_FORMATS[self.chroma]), f"chroma={self.chroma}"
        kind = KINDS[self.kind]
        value = (
            drawn.randint(int(self.least), int(self.most))
            if kind.whole
            else round(drawn.uniform(self.least, self.most), 2)
        )
        chance = np.random.default_rng(drawn.getrandbits(64))
        return kind.apply(frames, value, chance), f"{kind.parameter}={value:g}"


@dataclass(frozen=True)
class Condition:
    """A named series of steps. The name is the text it was written as."""

    name: str
    steps: tuple[Step, ...]

    def apply(self, lr: Tensor, sequence: str, seed: int) -> tuple[Tensor, str]:
        """The low-resolution frames (T, 3, H, W) uint8 of a sequence, degraded, and what was drawn for it."""
        # sha256, not hash(): Python's differs from process to process.
        digest = hashlib.sha256(f"{seed}/{self.name}/{sequence}".encode()).digest()
        drawn = random.Random(digest)  # noqa: S311 no secret is drawn
        frames = lr.permute(0, 2, 3, 1).contiguous().numpy()
        said = []
        for step in self.steps:
            frames, what = step.apply(frames, drawn)
            said.append(what)
        return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))), "+".join(said)


def parse_condition(text: str) -> Condition:
    """Read what the module's docstring describes; `JobFailureError(INVALID_OPTION)` names what is wrong with it."""
    return Condition(text, tuple(_parse_step(part, text) for part in text.split("+")))


def _parse_step(part: str, text: str) -> Step:
    kind_name, _, rest = part.partition(":")
    if kind_name == "chroma":
        if rest not in CHROMA_FORMATS:
            raise _refused(text, f"chroma is one of {', '.join(CHROMA_FORMATS)}")
        return Step("chroma", chroma=rest)
    if kind_name not in KINDS:
        raise _refused(text, f"there is no {kind_name!r}: choose from {', '.join([*KINDS, 'chroma'])}")
    kind = KINDS[kind_name]
    parameter, _, values = rest.partition("=")
    least, dash, most = values.partition("-")
    expected = f"expected {kind_name}:{kind.parameter}=A-B or {kind_name}:{kind.parameter}=A"
    if parameter != kind.parameter:
        raise _refused(text, expected)
    try:
        lowest, highest = float(least), float(most if dash else least)
    except ValueError as error:
        raise _refused(text, expected) from error
    if not kind.least <= lowest <= highest <= kind.most:
        raise _refused(text, f"{kind.parameter} lies between {kind.least:g} and {kind.most:g}, the lower end first")
    if kind.whole and not (lowest.is_integer() and highest.is_integer()):
        raise _refused(text, f"{kind.parameter} is a whole number")
    return Step(kind_name, lowest, highest)


def _refused(text: str, reason: str) -> JobFailureError:
    return JobFailureError(FailureCode.INVALID_OPTION, f"the degradation {text!r} is not understood: {reason}")
