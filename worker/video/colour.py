"""Frames to RGB arrays and back, with the source's own matrix, range and chroma location, rounded accurately.

PyAV's `to_ndarray("rgb24")` takes swscale's fast path, which is off by more than a grey level on average for 4:2:0, and
untagged frames get whatever matrix it guesses. Here everything is said, so what goes in comes out: a flat colour
survives the round trip within one 8-bit level. What swscale does not do right is done here: it takes all grey for full
range, rescales the transparency of YUV inexactly, and takes 65280 instead of 65535 for the white of 16 bits: on the way
to YUV of more than 8 bits always, on the way back where the range is limited. And full-range 4:4:4, which RGB becomes,
it rounds down: colours would come back two levels darker.
"""

from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from worker.contract.job import Container, VideoCodec
from worker.video.codecs import CODECS
from worker.video.frames import AlphaFrame, Frame, RgbFrame
from worker.video.values import Colour, Crop, MasteringDisplay, Picture

_Matrix = npt.NDArray[np.float32]
_Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact:sws_dither=none"
# ITU-T H.273 code points to the names of FFmpeg's scale filter. Others are rare, and are treated as unknown both ways.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# How much red and blue there is in luma (H.273, table 4); the rest is green.
_LUMA_WEIGHTS = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}
_RGB_MATRIX, _UNKNOWN = 0, 2
_BT709, _BT601 = 1, 6
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_HD_MIN_HEIGHT = 720
_MATROSKA_CHROMA_LOCATIONS = ("left", "center", "topleft", "top")
_USUAL_DEPTHS = (8, 10, 12, 16)


class PixelLayout(NamedTuple):
    """What a pixel format can hold."""

    has_alpha: bool
    is_coloured: bool
    chroma: int
    """Chroma samples per four pixels of two rows: 8 for 4:4:4, 4 for 4:2:2, 2 for 4:2:0."""
    bits: int
    is_rgb: bool


def pixel_layout(pixel_format: str) -> PixelLayout:
    """Return what this format of FFmpeg's can hold; unusual ones as the next that encoders know and that holds it."""
    layout = VideoFormat(pixel_format, 8, 8)
    colours = [component for component in layout.components if not component.is_alpha]
    is_rgb = layout.is_rgb or layout.has_palette or pixel_format.startswith("xyz")
    is_coloured = is_rgb or len(colours) > 1
    columns, rows = layout.chroma_width(8), layout.chroma_height(8)
    # 4:1:1 and 4:4:0 have no place of their own in encoders: 4:2:2 and 4:4:4 hold them.
    chroma = 8 if columns == 8 else 4 if rows == 8 else 2
    bits = max(component.bits for component in layout.components)
    return PixelLayout(
        has_alpha=layout.has_palette or len(colours) < len(layout.components),
        is_coloured=is_coloured,
        chroma=chroma if is_coloured else 0,
        bits=next((usual for usual in _USUAL_DEPTHS if bits <= usual), bits),
        is_rgb=is_rgb,
    )


def conversion_matrix(tagged: int, height: int) -> str:
    """Return FFmpeg's name of the matrix behind the tag `tagged`.

    Untagged video is taken as players take it: BT.709 when high-definition, else BT.601.
    """
    return _MATRICES.get(tagged, _MATRICES[_BT709 if height >= _HD_MIN_HEIGHT else _BT601])


def encoded_picture(
    source: Picture, scale: int, codec: VideoCodec, container: Container, source_codec: str = ""
) -> tuple[Picture, tuple[str, ...]]:
    """Return the result's picture, `scale` times as large, and what this codec cannot keep of the source's, in words.

    Of the codec's formats, the smallest that holds everything is taken. Untagged video stays untagged, unless its size
    would then make players guess otherwise than before. `source_codec` is FFmpeg's name of it.
    """
    pixel_format, wanted, given = _best_format(source, codec, container, source_codec)
    losses = _losses(source, wanted, given, codec, container)
    mastering_display = source.mastering_display
    if mastering_display is not None and not _is_complete(mastering_display):
        losses = (*losses, "what is known of the HDR mastering display, as it is incomplete")
        mastering_display = None
    picture = source.model_copy(
        update={
            "width": scale * source.width,
            "height": scale * source.height,
            "pixel_format": pixel_format,
            "bit_depth": given.bits,
            "has_alpha": given.has_alpha,
            "colour": _encoded_colour(source, scale, given, codec, container),
            # The fields of a woven picture do not survive enlarging: their lines are no longer every second one.
            "field_order": "progressive",
            "crop": _scaled_crop(source, scale),
            "mastering_display": mastering_display,
        }
    )
    return picture, losses


def shortcomings(
    source: Picture, codec: VideoCodec, container: Container, source_codec: str = ""
) -> tuple[int, int, int]:
    """Return how much this codec would lose: transparency, bits and colour resolution, the worst first."""
    _, wanted, given = _best_format(source, codec, container, source_codec)
    return _lacking(wanted, given)


def _best_format(
    source: Picture, codec: VideoCodec, container: Container, source_codec: str
) -> tuple[str, PixelLayout, PixelLayout]:
    """Return the codec's format, what was wanted and what it gives."""
    facts = CODECS[codec]
    wanted = pixel_layout(source.pixel_format)._replace(has_alpha=source.has_alpha)
    if codec is VideoCodec.PRORES and source_codec == codec.value:
        # ProRes has no bit depth of its own: FFmpeg's decoder shows 12 bits of what its encoder makes of 10.
        wanted = wanted._replace(bits=min(wanted.bits, 10))
    choices = {name: pixel_layout(name) for name in facts.pixel_formats}
    if container not in facts.alpha_containers or not source.has_alpha:
        choices = {name: layout for name, layout in choices.items() if not layout.has_alpha}
    if wanted.is_coloured:
        choices = {name: layout for name, layout in choices.items() if layout.is_coloured}
    best = min(choices, key=lambda name: (_lacking(wanted, choices[name]), _excess(wanted, choices[name])))
    return best, wanted, choices[best]


def _lacking(wanted: PixelLayout, given: PixelLayout) -> tuple[int, int, int]:
    return (
        int(wanted.has_alpha and not given.has_alpha),
        max(wanted.bits - given.bits, 0),
        max(wanted.chroma - given.chroma, 0),
    )


def _excess(wanted: PixelLayout, given: PixelLayout) -> tuple[int, ...]:
    return (
        wanted.is_rgb != given.is_rgb,
        given.is_coloured and not wanted.is_coloured,
        given.chroma - wanted.chroma,
        given.bits - wanted.bits,
    )


def _losses(
    source: Picture, wanted: PixelLayout, given: PixelLayout, codec: VideoCodec, container: Container
) -> tuple[str, ...]:
    losses = []
    if wanted.has_alpha and not given.has_alpha:
        losses.append(f"transparency, which {codec} in {container} has no place for")
    if wanted.chroma > given.chroma:
        losses.append(f"colour resolution ({_CHROMA_NAMES[wanted.chroma]} becomes {_CHROMA_NAMES[given.chroma]})")
    if wanted.bits > given.bits:
        losses.append(f"precision ({source.bit_depth} bits per sample become {given.bits})")
    return tuple(losses)


_CHROMA_NAMES = {8: "4:4:4", 4: "4:2:2", 2: "4:2:0"}


def _encoded_colour(source: Picture, scale: int, given: PixelLayout, codec: VideoCodec, container: Container) -> Colour:
    colour = source.colour
    changes: dict[str, object] = {}
    source_is_rgb = pixel_layout(source.pixel_format).is_rgb
    if given.is_rgb:
        conversion = conversion_matrix(_RGB_MATRIX, scale * source.height)
        changes = {"matrix": _RGB_MATRIX, "conversion": conversion, "range": _FULL_RANGE}
    elif source_is_rgb or colour.matrix == _RGB_MATRIX:
        # Full range, so that the levels of RGB have one of their own each.
        matrix = _BT709 if source.height >= _HD_MIN_HEIGHT else _BT601
        changes = {"matrix": matrix, "conversion": _MATRICES[matrix], "range": _FULL_RANGE}
    elif colour.matrix == _UNKNOWN and conversion_matrix(_UNKNOWN, scale * source.height) != colour.conversion:
        # Left untagged, the larger picture would be shown with the matrix of high definition: in other colours.
        changes = {"matrix": _BT601}
    if colour.range == 0 and not pixel_layout(source.pixel_format).is_coloured:
        changes["range"] = _FULL_RANGE  # as grey without a tag is shown, while encoded grey without one is not
    if CODECS[codec].only_limited_range:
        changes["range"] = _LIMITED_RANGE
    changes["chroma_location"] = _chroma_location(colour.chroma_location, given, codec, container)
    return colour.model_copy(update=changes)


def _chroma_location(source: str, given: PixelLayout, codec: VideoCodec, container: Container) -> str:
    """Return where the result's chroma samples lie: as in the source if there is a place to say so, else to the left.

    The conversion moves them there. Only 4:2:0 and 4:2:2 have a place to speak of, and 4:2:2 has no choice of rows.
    """
    if source == "unspecified" or given.chroma not in (2, 4):
        return "unspecified"
    in_bitstream: tuple[str, ...] = CODECS[codec].chroma_locations
    in_container = _MATROSKA_CHROMA_LOCATIONS if container in (Container.MKV, Container.WEBM) else ()
    return source if given.chroma == 2 and source in (in_bitstream or in_container) else "left"


def _is_complete(display: MasteringDisplay) -> bool:
    return None not in (
        display.primaries,
        display.white_point,
        display.min_luminance,
        display.max_luminance,
    )


def _scaled_crop(source: Picture, scale: int) -> Crop | None:
    crop = source.crop
    if crop is None:
        return None
    return Crop(left=scale * crop.left, right=scale * crop.right, top=scale * crop.top, bottom=scale * crop.bottom)


class ToRgb:
    """Converts decoded frames of one picture format to arrays."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._layout = pixel_layout(picture.pixel_format)
        self._depth = max(component.bits for component in VideoFormat(picture.pixel_format, 8, 8).components)
        # swscale gives the transparency of RGB exactly; that of the others is read from its plane.
        self._packed_alpha = picture.has_alpha and self._layout.is_rgb
        self._stretched = _stretching_table() if _is_deep_yuv(picture) and not _is_full_range(picture) else None
        self._matrix = _matrix_to_rgb(picture.colour.conversion) if _is_full_range_444(picture) else None
        self._graph: Graph | None = None
        if self._layout.is_coloured or self._depth == 1:
            self._graph = _graph(
                picture,
                picture.pixel_format,
                f"{_said('in', picture)}:out_range=pc",
                _rgb_format(picture, with_alpha=self._packed_alpha),
            )

    def __call__(self, frame: VideoFrame) -> Frame:
        if self._graph is None:
            return Frame(_rgb_of_grey(_samples(frame, 0)[..., 0], self._depth, self._picture), self._alpha(frame))
        if self._matrix is not None:
            return Frame(_rgb_of_444(frame, self._matrix, self._depth), self._alpha(frame))
        self._graph.vpush(_untagged(frame))
        pixels: RgbFrame = self._graph.vpull().to_ndarray()  # type: ignore[assignment]  # uint8 or uint16
        if self._packed_alpha:
            colours, alpha = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
            return Frame(cast(RgbFrame, colours), cast(AlphaFrame, alpha))
        if self._stretched is not None:
            pixels = self._stretched[pixels]
        return Frame(pixels, self._alpha(frame))

    def _alpha(self, frame: VideoFrame) -> AlphaFrame | None:
        if not self._picture.has_alpha:
            return None
        samples = _samples(frame, len(frame.planes) - 1)[..., -1]
        return _rescaled(samples, self._depth, 8 if self._picture.bit_depth <= 8 else 16)


class FromRgb:
    """Converts arrays to frames of one picture format, ready for the encoder."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._layout = pixel_layout(picture.pixel_format)
        self._packed_alpha = picture.has_alpha and self._layout.is_rgb
        self._rgb_format = _rgb_format(picture, with_alpha=self._packed_alpha)
        self._shrunk = _shrinking_table() if _is_deep_yuv(picture) else None
        self._matrix: _Matrix | None = None
        if _is_full_range_444(picture):
            self._matrix = np.linalg.inv(_matrix_to_rgb(picture.colour.conversion)).astype(np.float32)
        self._graph: Graph | None = None
        if self._layout.is_coloured:
            self._graph = _graph(
                picture, self._rgb_format, f"in_range=pc:{_said('out', picture)}", picture.pixel_format
            )

    def __call__(self, frame: Frame) -> VideoFrame:
        picture = self._picture
        if picture.has_alpha and frame.alpha is None:
            raise ValueError(f"{picture.pixel_format} wants transparency, the frame has none")
        depth = 8 if frame.rgb.dtype == np.uint8 else 16
        if (depth > 8) != (picture.bit_depth > 8):
            frame = Frame(
                _rescaled(frame.rgb, depth, 24 - depth),
                None if frame.alpha is None else _rescaled(frame.alpha, depth, 24 - depth),
            )
            depth = 24 - depth
        alpha = None if frame.alpha is None or not picture.has_alpha else frame.alpha
        if self._graph is None:
            result = VideoFrame(picture.width, picture.height, picture.pixel_format)
            grey = _grey_of_rgb(frame.rgb, picture)
            if alpha is None:
                _put(result, 0, grey[..., np.newaxis])
            else:
                both = np.stack([grey, _rescaled(alpha, depth, picture.bit_depth)], axis=-1)
                _put(result, 0, cast(_Samples, both))
            return _untagged(result)
        if self._matrix is not None:
            result = _444_of_rgb(frame.rgb, self._matrix, picture)
            if alpha is not None:
                _put(result, 3, _rescaled(alpha, depth, picture.bit_depth)[..., np.newaxis])
            return _untagged(result)
        pixels = frame.rgb
        if self._packed_alpha and alpha is not None:
            pixels = cast(RgbFrame, np.dstack([frame.rgb, alpha]))
        if self._shrunk is not None:
            pixels = self._shrunk[pixels]
        self._graph.vpush(VideoFrame.from_ndarray(pixels, self._rgb_format))
        result = self._graph.vpull()
        if alpha is not None and not self._packed_alpha:
            _put(result, 3, _rescaled(alpha, depth, picture.bit_depth)[..., np.newaxis])
        return _untagged(result)


def _graph(picture: Picture, pixel_format: str, scale: str, result_format: str) -> Graph:
    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=VideoFormat(pixel_format, picture.width, picture.height),
        time_base=Fraction(1, 1000),
    )
    graph.link_nodes(
        buffer, graph.add("scale", f"{scale}:{_FLAGS}"), graph.add("format", result_format), graph.add("buffersink")
    ).configure()
    return graph


def _said(side: str, picture: Picture) -> str:
    colour = picture.colour
    limited_or_full = "pc" if _is_full_range(picture) else "tv"
    if colour.matrix == _RGB_MATRIX or pixel_layout(picture.pixel_format).is_rgb:
        return f"{side}_range=pc"
    chroma = f":{side}_chroma_loc={colour.chroma_location}" if colour.chroma_location != "unspecified" else ""
    return f"{side}_color_matrix={colour.conversion}:{side}_range={limited_or_full}{chroma}"


def _rgb_format(picture: Picture, *, with_alpha: bool) -> str:
    if with_alpha:
        return "rgba64le" if picture.bit_depth > 8 else "rgba"
    return "rgb48le" if picture.bit_depth > 8 else "rgb24"


def _is_deep_yuv(picture: Picture) -> bool:
    layout = pixel_layout(picture.pixel_format)
    return layout.is_coloured and not layout.is_rgb and picture.bit_depth > 8


def _stretching_table() -> npt.NDArray[np.uint16]:
    """From swscale's white to all 16 bits: times 257 / 256."""
    levels = np.minimum(np.arange(65536, dtype=np.uint32), 65280)
    return ((levels * 257 + 128) >> 8).astype(np.uint16)


def _shrinking_table() -> npt.NDArray[np.uint16]:
    levels = np.arange(65536, dtype=np.uint32)
    return ((levels * 256 + 128) // 257).astype(np.uint16)


def _is_full_range_444(picture: Picture) -> bool:
    planar = picture.pixel_format.startswith(("yuv444p", "yuva444p", "yuvj444p"))
    return planar and _is_full_range(picture) and picture.colour.matrix != _RGB_MATRIX


def _matrix_to_rgb(conversion: str) -> _Matrix:
    """H.273's equations 38 to 43 for luma from 0 to 1 and chroma from -0.5 to 0.5, solved for red, green and blue."""
    red, blue = _LUMA_WEIGHTS[conversion]
    green = 1 - red - blue
    from_blue, from_red = 2 * (1 - blue), 2 * (1 - red)
    return np.array(
        [[1, 0, from_red], [1, -from_blue * blue / green, -from_red * red / green], [1, from_blue, 0]], np.float32
    )


def _rgb_of_444(frame: VideoFrame, to_rgb: _Matrix, depth: int) -> RgbFrame:
    yuv = np.concatenate([_samples(frame, number) for number in range(3)], axis=-1).astype(np.float32)
    top = 255 if depth <= 8 else 65535
    yuv[..., 1:] -= 1 << (depth - 1)
    rgb = yuv @ (to_rgb * (top / (2**depth - 1))).T
    levels: npt.NDArray[np.float32] = np.clip(np.rint(rgb), 0, top)
    return levels.astype(np.uint8) if depth <= 8 else levels.astype(np.uint16)


def _444_of_rgb(rgb: RgbFrame, from_rgb: _Matrix, picture: Picture) -> VideoFrame:
    depth = picture.bit_depth
    top = 2**depth - 1
    yuv = rgb.astype(np.float32) @ (from_rgb * (top / (255 if rgb.dtype == np.uint8 else 65535))).T
    yuv[..., 1:] += 1 << (depth - 1)
    levels = np.clip(np.rint(yuv), 0, top).astype(np.uint8 if depth <= 8 else np.uint16)
    frame = VideoFrame(picture.width, picture.height, picture.pixel_format)
    for number in range(3):
        _put(frame, number, levels[..., number : number + 1])
    return frame


def _rgb_of_grey(grey: _Samples, depth: int, picture: Picture) -> RgbFrame:
    black, white = _black_and_white(depth, picture)
    dtype, top = (np.uint8, 255) if picture.bit_depth <= 8 else (np.uint16, 65535)
    levels = (grey.astype(np.float32) - black) * (top / (white - black))
    return np.repeat(np.clip(np.rint(levels), 0, top).astype(dtype)[..., np.newaxis], 3, axis=-1)


def _grey_of_rgb(rgb: RgbFrame, picture: Picture) -> _Samples:
    black, white = _black_and_white(picture.bit_depth, picture)
    red, blue = _LUMA_WEIGHTS[picture.colour.conversion]
    top = 255 if rgb.dtype == np.uint8 else 65535
    luma = rgb.astype(np.float32) @ np.array([red, 1 - red - blue, blue], np.float32)
    levels: npt.NDArray[np.float32] = np.rint(luma * ((white - black) / top) + black)
    return levels.astype(np.uint8) if picture.bit_depth <= 8 else levels.astype(np.uint16)


def _black_and_white(depth: int, picture: Picture) -> tuple[int, int]:
    if _is_full_range(picture) or picture.colour.matrix == _RGB_MATRIX:
        return 0, 2**depth - 1
    return 16 << (depth - 8), 235 << (depth - 8)


def _is_full_range(picture: Picture) -> bool:
    """Untagged video is of limited range, but untagged grey of full: so do FFmpeg's players take it."""
    full = picture.colour.range == _FULL_RANGE
    return full or (picture.colour.range == 0 and not pixel_layout(picture.pixel_format).is_coloured)


def _rescaled(samples: _Samples, depth: int, result_depth: int) -> _Samples:
    """Full range of `depth` bits to full range of `result_depth`, rounded; there and back is the same."""
    if depth == result_depth:
        return samples
    top, result_top = 2**depth - 1, 2**result_depth - 1
    if (depth, result_depth) == (8, 16):
        return samples.astype(np.uint16) * np.uint16(257)
    wide: npt.NDArray[np.uint32] = (samples.astype(np.uint32) * result_top + top // 2) // top
    return wide.astype(np.uint8) if result_depth <= 8 else wide.astype(np.uint16)


def _samples(frame: VideoFrame, plane_number: int) -> _Samples:
    """Return a plane as (H, W, values per pixel), in this machine's byte order."""
    plane = frame.planes[plane_number]
    dtype = _sample_dtype(frame)
    values = _values_per_pixel(frame)
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
    rows = rows[:, : plane.width * values * dtype.itemsize]
    samples = rows.copy().view(dtype).astype(dtype.newbyteorder("="))
    return cast(_Samples, samples.reshape(plane.height, plane.width, values))


def _put(frame: VideoFrame, plane_number: int, samples: _Samples) -> None:
    plane = frame.planes[plane_number]
    dtype = _sample_dtype(frame)
    content = samples.astype(dtype).reshape(plane.height, -1).view(np.uint8)
    rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
    rows[: plane.height, : content.shape[1]] = content
    plane.update(rows.tobytes())


def _sample_dtype(frame: VideoFrame) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    if max(component.bits for component in frame.format.components) <= 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16).newbyteorder(">" if frame.format.is_big_endian else "<")


def _values_per_pixel(frame: VideoFrame) -> int:
    """Return 2 for grey with alpha, which lie side by side; all other formats asked here have a plane for each."""
    return 2 if frame.format.name.startswith("ya") else 1


def _untagged(frame: VideoFrame) -> VideoFrame:
    """The graph has been told everything; tags on the frame would only be negotiated against it."""
    frame.colorspace = _UNKNOWN
    frame.color_range = 0
    frame.color_primaries = _UNKNOWN
    frame.color_trc = _UNKNOWN
    return frame
