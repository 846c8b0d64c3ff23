"""Opening and decoding a file that a stranger sent: what it may be, how big it may be, what every failure is called.

The file is opened by path, never as a URL or a Python file object (through which FFmpeg would follow links to other
hosts), and only with demuxers that read one self-contained file: a playlist of any name is refused.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.alpha_blocks import AlphaBlocks, alpha_blocks
from worker.video.packet_ledger import PacketLedger
from worker.video.packets import is_end_mark

DEMUXERS = ",".join(
    (
        "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,live_flv,kux,mpegts,mpeg,mxf,gxf,nut,ogg,wtv,ty,rm,nsv,nuv,dv",
        "gif,apng,yuv4mpegpipe,ivf,obu,mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,vc1,cavsvideo,dirac,mjpeg,mpjpeg",
        "pva,lxf,cine,ser,flic,smk,bink,roq",
    )
)
"""Demuxers that read one file and nothing else. Playlists (concat, hls, dash, imf, sdp), pictures numbered by name,
devices and generators are not here, and neither is what opens a second file by itself (mlv, vobsub)."""

DECODER_THREADS = 4
"""Bounds the frames in flight, and so memory, on machines with many cores."""

_PLAYLIST = re.compile(rb"^\s*(#EXTM3U|ffconcat\s|file\s+\S|<MPD[\s>]|v=0\s*$)", re.MULTILINE)
_PLAYLIST_SNIFF_BYTES = 64 * 1024
_STREAMING_FORMATS = frozenset(("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc", "vc1", "cavsvideo", "m4v"))


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
        try:
            yield container
        finally:
            _stop_decoders(container)


def _stop_decoders(container: InputContainer) -> None:
    """Wait for the threads of decoders that are left amid a video, as behind the end of a segment.

    Freeing a decoder waits for them too, but with Python's lock held: a thread that lets go of a packet's label
    (`Packet.opaque`) then waits for the lock, and both for ever. Seen with AV1 and VP9.
    """
    for stream in container.streams:
        context = cast("CodecContext | None", stream.codec_context)
        if context is not None:
            context.flush_buffers()


def main_video_stream(container: InputContainer, max_pixels: int, *, conceal: bool = False) -> VideoStream:
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
    prepare_decoder(stream, max_pixels, conceal=conceal)
    return stream


def stream_at(container: InputContainer, index: int) -> VideoStream:
    """Return the video stream that a survey chose."""
    stream = container.streams[index]
    if not isinstance(stream, VideoStream):
        raise JobFailureError(FailureCode.CORRUPT_FRAME, f"stream {index} of the source is no longer a video")
    return stream


def prepare_decoder(stream: VideoStream, max_pixels: int, *, conceal: bool = False) -> None:
    """Set the threads and the size limit of a decoder; must come before its first packet.

    What is made of damage depends on what else is at hand at that moment: with `conceal` one thread alone decodes, so
    that the same comes out every time.
    """
    stream.thread_type = "NONE" if conceal else "AUTO"
    stream.thread_count = 1 if conceal else DECODER_THREADS
    stream.codec_context.copy_opaque = True
    stream.codec_context.options = {"max_pixels": size_limit_option(max_pixels)}


def new_ledger(container: InputContainer, stream: VideoStream) -> PacketLedger:
    """Begin the account of one decoding."""
    return PacketLedger(
        stream.codec_context.codec.canonical_name, may_start_anywhere=container.format.name in _STREAMING_FORMATS
    )


def decode_all(
    container: InputContainer,
    stream: VideoStream,
    on_progress: Callable[[], None] = lambda: None,
    *,
    conceal: bool = False,
    ledger: PacketLedger | None = None,
) -> Iterator[VideoFrame]:
    """Decode from the container's present position to its end, in the order of display.

    Other streams are skipped, and so are frames that refer to what is before the start. `on_progress` is called for
    every frame and may stop the work by raising. Raises `JobFailureError(CORRUPT_FRAME)` that names the place, unless
    `conceal`: then packets that cannot be decoded are passed over, and frames are taken however damaged they are. What
    became of each packet stands in `ledger`.
    """
    ledger = ledger or new_ledger(container, stream)
    done, seconds = 0, 0.0
    alpha: AlphaBlocks | None = None
    try:
        for packet in container.demux(stream):
            at_end = is_end_mark(cast("Packet[Stream]", packet))
            if packet.size == 0 and not at_end:
                continue  # AVI's word for showing the frame before longer; decoders would take it for the end
            # Transport streams mark every break in their counters, as at joints; there the decoder knows better.
            if packet.is_corrupt and not conceal and container.format.name != "mpegts":
                raise _corrupt(done, seconds, "the file is cut off or damaged")
            number = len(ledger.times) if at_end else ledger.enter(packet)
            if number == 0:
                alpha = alpha_blocks(stream, packet)
            # PyAV knows the object again by its address alone, so there has to be one for each packet.
            packet.opaque = [number]
            for frame in _decode(packet, number, alpha, ledger, conceal=conceal):
                origin = ledger.came_out(frame)
                if frame.is_corrupt and origin is not None:
                    if ledger.is_before_start(origin):
                        continue
                    ledger.damaged.add(origin)
                if frame.is_corrupt and not conceal:
                    raise _corrupt(done, seconds, "the decoder marks the frame as damaged")
                if frame.pts is None and origin is not None:
                    frame.dts = ledger.decoding_times[origin]  # not of the packet that happened to push it out
                ledger.frames.append(origin)
                ledger.first_frame = ledger.first_frame or frame
                on_progress()
                yield alpha.join(frame) if alpha is not None else _top_down(frame)
                done += 1
                seconds = frame.time or seconds
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise _corrupt(done, seconds, _reason(error)) from error


def _decode(
    packet: "Packet[VideoStream]", number: int, alpha: AlphaBlocks | None, ledger: PacketLedger, *, conceal: bool
) -> Sequence[VideoFrame]:
    """Give one packet to the decoders. With `conceal`, what they refuse is passed over."""
    if not conceal:
        if alpha is not None:
            alpha.feed(packet)
        return packet.decode()
    try:
        if alpha is not None:
            alpha.feed(packet)
        frames = packet.decode()
    except (av.FFmpegError, ValueError, IndexError):
        ledger.damaged.add(number)
        return []
    # Damage may look like several pictures in one packet: it can only be one of them.
    frames = list({ledger.number_of(frame): frame for frame in frames}.values())
    # Where data are missing, pictures that went before shine through: those whose memory the decoder got back.
    return [_copied(frame) for frame in frames]


def _top_down(frame: VideoFrame) -> VideoFrame:
    """Return the frame with its rows in order. Uncompressed AVI has them bottom up, where PyAV shows other bytes."""
    return frame if all(plane.line_size >= 0 for plane in frame.planes) else _copied(frame)


def _copied(frame: VideoFrame) -> VideoFrame:
    """Return a copy in memory of its own, rows in order."""
    graph = Graph()
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    graph.link_nodes(buffer, graph.add("copy"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def frame_stamp(frame: VideoFrame) -> int | None:
    """Return the time that the decoder puts on the frame. AVI stores none of presentation, only of decoding."""
    return frame.pts if frame.pts is not None else frame.dts


def frame_crc32(frame: VideoFrame) -> int:
    """Return the checksum of the visible bytes of all planes. Row padding is left out: its content is chance."""
    crc = 0
    for number, plane in enumerate(frame.planes):
        if number == 1 and frame.format.has_palette:
            crc = zlib.crc32(memoryview(plane), crc)
            continue
        components = [component for component in frame.format.components if component.plane == number]
        if number == 0 and len(components) == len(frame.format.components):
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
