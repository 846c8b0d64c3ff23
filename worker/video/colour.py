"""YUV to RGB and back with the source's own matrix, range and chroma location, rounded accurately.

PyAV's `to_ndarray("rgb24")` takes swscale's fast path, which is off by more than a grey level on average for 4:2:0, and
untagged frames get whatever matrix it guesses. Here everything is said, so what goes in comes out: a flat colour
survives the round trip within one 8-bit level.
"""

from fractions import Fraction

from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from worker.contract.job import Container, VideoCodec
from worker.video.frames import Frame
from worker.video.values import Picture

_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact:sws_dither=none"
# ITU-T H.273 code points to the names of FFmpeg's scale filter. Others are rare, and are treated as unknown both ways.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_RGB_MATRIX, _UNKNOWN = 0, 2
_BT709, _BT601 = 1, 6
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_HD_MIN_HEIGHT = 720


def conversion_matrix(tagged: int, height: int) -> str:
    """Return FFmpeg's name of the matrix behind the tag `tagged`.

    Untagged video is taken as players take it: BT.709 when high-definition, else BT.601.
    """
    return _MATRICES.get(tagged, _MATRICES[_BT709 if height >= _HD_MIN_HEIGHT else _BT601])


def encoded_picture(
    source: Picture, scale: int, codec: VideoCodec, container: Container
) -> tuple[Picture, tuple[str, ...]]:
    """Return the result's picture, `scale` times as large, and what this codec cannot keep of the source's, in words.

    Untagged video stays untagged, unless its size would then make players guess otherwise than before.
    """
    deep = source.bit_depth > 8
    colour = source.colour
    if colour.matrix == _RGB_MATRIX:
        # 4:2:0 video cannot be tagged as RGB.
        matrix = _BT709 if source.height >= _HD_MIN_HEIGHT else _BT601
        colour = colour.model_copy(update={"matrix": matrix, "conversion": _MATRICES[matrix], "range": _LIMITED_RANGE})
    elif colour.matrix == _UNKNOWN and conversion_matrix(_UNKNOWN, scale * source.height) != colour.conversion:
        # Left untagged, the larger picture would be shown with the matrix of high definition: in other colours.
        colour = colour.model_copy(update={"matrix": _BT601})
    picture = source.model_copy(
        update={
            "width": scale * source.width,
            "height": scale * source.height,
            "pixel_format": "yuv420p10le" if deep else "yuv420p",
            "bit_depth": 10 if deep else 8,
            "colour": colour,
        }
    )
    return picture, ()


class ToRgb:
    """Converts decoded frames of one picture format to arrays."""

    def __init__(self, picture: Picture) -> None:
        self._graph = _graph(
            picture.width,
            picture.height,
            picture.pixel_format,
            f"{_said('in', picture)}:out_range=pc",
            _rgb_format(picture),
        )

    def __call__(self, frame: VideoFrame) -> Frame:
        self._graph.vpush(_untagged(frame))
        return Frame(self._graph.vpull().to_ndarray())  # type: ignore[arg-type]  # uint8 or uint16 by the pixel format


class FromRgb:
    """Converts arrays to frames of one picture format, ready for the encoder."""

    def __init__(self, picture: Picture) -> None:
        self._rgb_format = _rgb_format(picture)
        self._graph = _graph(
            picture.width,
            picture.height,
            self._rgb_format,
            f"in_range=pc:{_said('out', picture)}",
            picture.pixel_format,
        )

    def __call__(self, frame: Frame) -> VideoFrame:
        self._graph.vpush(VideoFrame.from_ndarray(frame.rgb, self._rgb_format))
        return _untagged(self._graph.vpull())


def _graph(width: int, height: int, pixel_format: str, scale: str, result_format: str) -> Graph:
    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=width, height=height, format=VideoFormat(pixel_format, width, height), time_base=Fraction(1, 1000)
    )
    graph.link_nodes(
        buffer, graph.add("scale", f"{scale}:{_FLAGS}"), graph.add("format", result_format), graph.add("buffersink")
    ).configure()
    return graph


def _said(side: str, picture: Picture) -> str:
    colour = picture.colour
    limited_or_full = "pc" if colour.range == _FULL_RANGE else "tv"
    if colour.matrix == _RGB_MATRIX:
        return f"{side}_range=pc"
    chroma = f":{side}_chroma_loc={colour.chroma_location}" if colour.chroma_location != "unspecified" else ""
    return f"{side}_color_matrix={colour.conversion}:{side}_range={limited_or_full}{chroma}"


def _rgb_format(picture: Picture) -> str:
    return "rgb48le" if picture.bit_depth > 8 else "rgb24"


def _untagged(frame: VideoFrame) -> VideoFrame:
    """The graph has been told everything; tags on the frame would only be negotiated against it."""
    frame.colorspace = _UNKNOWN
    frame.color_range = 0
    frame.color_primaries = _UNKNOWN
    frame.color_trc = _UNKNOWN
    return frame
