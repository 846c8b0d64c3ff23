"""Opening and decoding a file that a stranger sent: what it may be, how big it may be, what every failure is called.

The file is opened by path, never as a URL or a Python file object (through which FFmpeg would follow links to other
hosts), and only with demuxers that read one self-contained file: a playlist of any name is refused.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,live_flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,ogg,mxf,nut,"
    "dv,yuv4mpegpipe"
)
"""Demuxers that read one file and nothing else. Playlists (concat, hls, dash, sdp) and image sequences are not here."""

DECODER_THREADS = 4
"""Bounds the frames in flight, and so memory, on machines with many cores."""

_PLAYLIST = re.compile(rb"^\s*(#EXTM3U|ffconcat\s|file\s+\S|<MPD[\s>]|v=0\s*$)", re.MULTILINE)
_PLAYLIST_SNIFF_BYTES = 64 * 1024


@contextmanager
def open_source(source: Path, max_pixels: int) -> Iterator[InputContainer]:
    """Open an untrusted file for reading. Raises `JobFailureError`; only failures of opening are named here."""
    if source.stat().st_size == 0:
        raise JobFailureError(FailureCode.EMPTY_FILE, "the file is empty")
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "max_pixels": size_limit_option(max_pixels)}
    try:
        container = av.open(str(source), "r", options=options, metadata_errors="replace", timeout=60.0)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise _refusal(source, error) from error
    with container:
        yield container


def main_video_stream(container: InputContainer, max_pixels: int) -> VideoStream:
    """Return the stream to upscale: the first marked as default, else the first. Cover pictures do not count."""
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        kinds = sorted({stream.type for stream in container.streams})
        has = " and ".join(kinds) if kinds else "nothing"
        raise JobFailureError(FailureCode.NO_VIDEO_STREAM, f"the file has no video stream (it holds {has})")
    stream = next((video for video in videos if video.disposition & Disposition.default), videos[0])
    # A stream whose codec FFmpeg does not know has no codec context, whatever the type stubs say.
    if stream.codec_context is None:
        raise JobFailureError(
            FailureCode.UNSUPPORTED_CODEC,
            f"the codec of video stream {stream.index} cannot be decoded here: convert the file to H.264 first",
        )
    prepare_decoder(stream, max_pixels)
    return stream


def stream_at(container: InputContainer, index: int) -> VideoStream:
    """Return the video stream that a survey chose."""
    stream = container.streams[index]
    if not isinstance(stream, VideoStream):
        raise JobFailureError(FailureCode.CORRUPT_FRAME, f"stream {index} of the source is no longer a video")
    return stream


def prepare_decoder(stream: VideoStream, max_pixels: int) -> None:
    """Set the threads and the size limit of a decoder; must come before its first packet."""
    stream.thread_type = "AUTO"
    stream.thread_count = DECODER_THREADS
    stream.codec_context.options = {"max_pixels": size_limit_option(max_pixels)}


def decode_all(
    container: InputContainer, stream: VideoStream, on_progress: Callable[[], None] = lambda: None
) -> Iterator[VideoFrame]:
    """Decode from the container's present position to its end, in the order of display.

    Other streams are skipped. `on_progress` is called for every frame and may stop the work by raising. Raises
    `JobFailureError(CORRUPT_FRAME)` that names the place.
    """
    done, seconds = 0, 0.0
    try:
        for packet in container.demux(stream):
            # Transport streams mark every break in their counters, as at joints; there the decoder knows better.
            if packet.is_corrupt and container.format.name != "mpegts":
                raise _corrupt(done, seconds, "the file is cut off or damaged")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _corrupt(done, seconds, "the decoder marks the frame as damaged")
                on_progress()
                yield frame
                done += 1
                seconds = frame.time or seconds
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise _corrupt(done, seconds, _reason(error)) from error


def frame_stamp(frame: VideoFrame) -> int | None:
    """Return the time that the decoder puts on the frame. AVI stores none of presentation, only of decoding."""
    return frame.pts if frame.pts is not None else frame.dts


def frame_crc32(frame: VideoFrame) -> int:
    """Return the checksum of the visible bytes of all planes. Row padding is left out: its content is chance.

    Raises `JobFailureError(UNSUPPORTED_SOURCE)` for a picture stored bottom up, whose bytes PyAV cannot show.
    """
    crc = 0
    for number, plane in enumerate(frame.planes):
        if plane.line_size < 0:
            raise JobFailureError(
                FailureCode.UNSUPPORTED_SOURCE,
                "the picture is stored bottom up, which is not supported: convert the file to another codec first",
            )
        components = [component for component in frame.format.components if component.plane == number]
        if len(frame.planes) == 1:
            row_bytes = (frame.width * frame.format.padded_bits_per_pixel + 7) // 8
        else:
            row_bytes = sum(component.width * ((component.bits + 7) // 8) for component in components)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
        crc = zlib.crc32(rows[:, :row_bytes].tobytes(), crc)
    return crc


def size_limit_option(max_pixels: int) -> str:
    """FFmpeg's `max_pixels`: codecs count their padding to whole blocks too. The exact limit is checked by `survey`."""
    return str(max_pixels + max_pixels // 8)


def _corrupt(frames_done: int, seconds: float, reason: str) -> JobFailureError:
    return JobFailureError(
        FailureCode.CORRUPT_FRAME, f"the video cannot be decoded near frame {frames_done} ({seconds:.3f} s): {reason}"
    )


def _refusal(source: Path, error: Exception) -> JobFailureError:
    """Name what was opened in vain. FFmpeg says "invalid argument" for a playlist that the whitelist stopped."""
    with source.open("rb") as file:
        head = file.read(_PLAYLIST_SNIFF_BYTES)
    if _PLAYLIST.search(head):
        return JobFailureError(
            FailureCode.PLAYLIST_REFUSED, "the file is a playlist that points at other files: send the video itself"
        )
    if isinstance(error, av.error.EOFError):
        return JobFailureError(FailureCode.NO_FRAMES, "the file ends behind its header: it holds no frames")
    if head[4:8] == b"ftyp":
        return JobFailureError(
            FailureCode.NOT_A_VIDEO, "the file begins like an mp4 but its index is missing: it is cut off or damaged"
        )
    return JobFailureError(FailureCode.NOT_A_VIDEO, f"the file is not a video that can be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    """FFmpeg's own words, without the path that it adds."""
    return (isinstance(error, av.FFmpegError) and error.strerror) or str(error) or type(error).__name__
