"""The video codecs of the result: what makes each, the pixel formats it keeps, and its numbers of quality."""

from dataclasses import dataclass, field
from typing import Literal

from worker.contract.job import Container, VideoCodec

Quality = Literal["small", "balanced", "high", "lossless"]


@dataclass(frozen=True)
class Codec:
    """What there is to know about one codec before any picture."""

    encoder: str
    """FFmpeg's name of it."""
    pixel_formats: tuple[str, ...]
    """Those of the encoder's that we use: players know them, and each keeps something that no other one does."""
    segment_format: Literal["mp4", "mov", "matroska"] = "mp4"
    """FFmpeg's name of the container of single segments."""
    crf: dict[Quality, int] = field(default_factory=dict)
    """The words of quality in the codec's own numbers, lower is better; empty where the codec has none."""
    max_crf: int = 0
    lossless: Literal["never", "on demand", "always"] = "on demand"
    min_side_px: int = 1
    """Of the result: below, the encoder cannot be trusted."""
    only_limited_range: bool = False
    """The codec has no place to say that a picture is of full range."""
    chroma_locations: tuple[str, ...] = ()
    """Places of chroma samples that the bitstream can name; empty: it is for the container to say."""
    alpha_containers: tuple[Container, ...] = tuple(Container)
    """Where its transparency has a place."""

    @property
    def segment_suffix(self) -> str:
        return {"mp4": ".mp4", "mov": ".mov", "matroska": ".mkv"}[self.segment_format]


_H26X_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_YUV_8 = ("yuv420p", "yuv422p", "yuv444p")
_YUV_10 = ("yuv420p10le", "yuv422p10le", "yuv444p10le")
_YUV_12 = ("yuv420p12le", "yuv422p12le", "yuv444p12le")
_YUV_16 = ("yuv420p16le", "yuv422p16le", "yuv444p16le")
_YUVA = tuple(name.replace("yuv", "yuva") for name in (*_YUV_8, *_YUV_10, *_YUV_12[1:], *_YUV_16))
_FFV1_RGB = ("bgr0", "bgra", "gbrp10le", "gbrap10le", "gbrp12le", "gbrap12le", "gbrp16le", "gbrap16le")

CODECS = {
    VideoCodec.H264: Codec(
        "libx264",
        (*_YUV_8, *_YUV_10, "gray", "gray10le"),
        chroma_locations=_H26X_CHROMA_LOCATIONS,
        crf={"small": 23, "balanced": 18, "high": 14},
        max_crf=51,
    ),
    VideoCodec.HEVC: Codec(
        "libx265",
        (*_YUV_8, *_YUV_10, *_YUV_12, "gray", "gray10le", "gray12le"),
        chroma_locations=_H26X_CHROMA_LOCATIONS,
        crf={"small": 26, "balanced": 20, "high": 15},
        max_crf=51,
        # Where a side is not longer than its block of 64 px, x265 gives other bytes from run to run; with smaller
        # blocks it is the same every time, but writes beyond its memory (sides of 34 to 46 px).
        min_side_px=66,
    ),
    VideoCodec.AV1: Codec(
        "libsvtav1",
        ("yuv420p", "yuv420p10le"),
        chroma_locations=("left", "topleft"),
        crf={"small": 35, "balanced": 28, "high": 18},
        max_crf=63,
        # SVT-AV1 4.1 has the option, but with it makes broken files at quick presets and changes samples of 10 bits.
        lossless="never",
        min_side_px=32,  # SVT-AV1 accepts less, then waits for ever on 16x128 and the like
    ),
    VideoCodec.VP9: Codec(
        "libvpx-vp9",
        (*_YUV_8, "yuva420p"),
        segment_format="matroska",  # which alone has a place for its transparency: a second picture beside each
        crf={"small": 36, "balanced": 28, "high": 18},
        max_crf=63,
        alpha_containers=(Container.WEBM, Container.MKV),
    ),
    VideoCodec.FFV1: Codec(
        "ffv1",
        (*_YUV_8, *_YUV_10, *_YUV_12, *_YUV_16, *_YUVA, *_FFV1_RGB, "gray", "gray10le", "gray12le", "gray16le", "ya8"),
        segment_format="matroska",
        lossless="always",
    ),
    VideoCodec.PRORES: Codec(
        "prores_ks",
        ("yuv422p10le", "yuv444p10le", "yuva444p10le"),
        segment_format="mov",
        lossless="never",
        only_limited_range=True,
    ),
    VideoCodec.PNG: Codec(
        "png",
        ("rgb24", "rgba", "rgb48be", "rgba64be", "gray", "gray16be", "ya8", "ya16be"),
        segment_format="mov",
        lossless="always",
    ),
}

DEFAULT_CODECS = {
    Container.MP4: (VideoCodec.H264, VideoCodec.HEVC),
    Container.MOV: (VideoCodec.H264, VideoCodec.HEVC, VideoCodec.PRORES),
    Container.MKV: (VideoCodec.H264, VideoCodec.HEVC, VideoCodec.VP9, VideoCodec.FFV1),
    Container.WEBM: (VideoCodec.AV1, VideoCodec.VP9),
    Container.ZIP: (VideoCodec.PNG,),
}
"""What is tried where the user names no codec: the first that loses nothing, else the first that loses least.

Of more than 8 bits HEVC comes before H.264, whose 10-bit profile few televisions, telephones and browsers play.
"""
