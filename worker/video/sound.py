"""Sound that the result's container cannot hold, in a codec that it can: lossless where there is one."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container
from worker.video.containers import in_memory
from worker.video.source import open_source

SUBSTITUTES = {Container.MP4: "flac", Container.MKV: "flac", Container.MOV: "alac", Container.WEBM: "libopus"}
"""The encoder for each container. FLAC and ALAC keep what the decoder gives, to 24 bits."""

_OPUS_RATE = 48000
_GAP_SECONDS = 0.5
_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


class Conversion:
    """One stream of sound on its way to another codec."""

    def __init__(
        self, source: Path, max_pixels: int, index: int, container: Container, until: Fraction | None = None
    ) -> None:
        """`until`: in seconds; sound that begins later is left out."""
        self._source = source
        self._max_pixels = max_pixels
        self._index = index
        self._until = until
        self._encoder = SUBSTITUTES[container]
        self._encoded: AudioStream | None = None

    def add_to(self, output: OutputContainer, original: Stream) -> AudioStream:
        """Add the stream to a file whose header is not yet written."""
        if not isinstance(original, AudioStream):
            raise TypeError(f"stream {self._index} is no sound")
        if cast(AudioCodecContext | None, original.codec_context) is None:
            raise TypeError(f"no decoder here knows the sound of stream {self._index}")
        is_opus = self._encoder == "libopus"
        encoded = output.add_stream(self._encoder, rate=_OPUS_RATE if is_opus else original.codec_context.sample_rate)
        if not isinstance(encoded, AudioStream):
            raise TypeError(f"{self._encoder} is no audio encoder")
        encoded.codec_context.layout = _named_layout(original)
        # 16-bit decoders say so; the float of all others is kept to 24 bits.
        sixteen_bits = original.codec_context.format.name in ("s16", "s16p")
        encoded.codec_context.format = {
            "flac": "s16" if sixteen_bits else "s32",
            "alac": "s16p" if sixteen_bits else "s32p",
            "libopus": "flt",
        }[self._encoder]
        encoded.disposition = original.disposition
        encoded.metadata.update(original.metadata)
        self._encoded = encoded
        return encoded

    def decoded(self) -> Iterator[av.AudioFrame]:
        """Yield the source's sound as it is converted: frames with times counted in samples."""
        with open_source(self._source, self._max_pixels) as container:
            yield from self._kept(container)

    def packets(self) -> Iterator["Packet[Stream]"]:
        """Decode and encode. The header must have been written, which opens the encoder."""
        encoded = self._encoded
        if encoded is None:
            raise ValueError("the stream was added to no file")
        context = encoded.codec_context
        resampler = av.AudioResampler(
            format=context.format,
            layout=context.layout,
            rate=context.sample_rate,
            frame_size=context.frame_size or None,
        )
        with open_source(self._source, self._max_pixels) as container:
            for frame in chain(self._kept(container), [None]):
                for regular in resampler.resample(frame):
                    yield from encoded.encode(regular)
            yield from encoded.encode(None)

    def _kept(self, container: InputContainer) -> Iterator[av.AudioFrame]:
        for frame in _decoded(container, self._index):
            if self._until is not None and Fraction(frame.pts or 0, frame.sample_rate) >= self._until:
                return
            yield frame


def can_be_converted(source: Path, max_pixels: int, index: int, container: Container) -> bool:
    """Say whether there are a decoder and an encoder for it; tried in memory."""
    if container not in SUBSTITUTES:
        return False
    with open_source(source, max_pixels) as opened, in_memory(container) as output:
        try:
            Conversion(source, max_pixels, index, container).add_to(output, opened.streams[index])
            output.start_encoding()
        except (av.FFmpegError, ValueError, TypeError):
            return False
    return True


class HeardTimes(NamedTuple):
    """When samples of a sound are heard, in seconds. With gaps, the middle of the samples is not that of the time."""

    first: Fraction
    middle: Fraction
    last: Fraction
    sound_seconds: Fraction
    """How much sound there is."""


def heard_times(frames: Iterable[av.AudioFrame], sound_seconds: Fraction | None = None) -> HeardTimes:
    """Return when the first, the middle and the last sample are heard; of the first `sound_seconds`, if given."""
    starts: list[tuple[int, Fraction]] = []
    samples, rate = 0, 1
    for frame in frames:
        rate = frame.sample_rate
        starts.append((samples, (frame.pts or 0) * (frame.time_base or Fraction(1, rate))))
        samples += frame.samples
    if not starts:
        return HeardTimes(Fraction(0), Fraction(0), Fraction(0), Fraction(0))

    def heard_at(sound: Fraction) -> Fraction:
        """When the sample behind so many seconds of sound is heard."""
        before, start = next(one for one in reversed(starts) if Fraction(one[0], rate) <= sound)
        return start + sound - Fraction(before, rate)

    present = Fraction(samples, rate)
    looked_at = present if sound_seconds is None else sound_seconds
    return HeardTimes(heard_at(Fraction(0)), heard_at(looked_at / 2), heard_at(min(present, looked_at)), present)


def _named_layout(original: AudioStream) -> str:
    """ASF may tell the number of channels only; encoders want to know where they stand."""
    layout = original.codec_context.layout
    return _USUAL_LAYOUTS.get(layout.nb_channels, layout.name) if "channels" in layout.name else layout.name


def _decoded(container: InputContainer, index: int) -> Iterator[av.AudioFrame]:
    """Yield frames with times counted in samples from the stream's start.

    Codecs of several frames to a packet (WMA) stamp few of them, and those roughly. Only a real gap moves the count.
    Sound that changes its layout or rate midway is refused: neither resampler nor encoder follows.
    """
    next_sample: int | None = None
    first_shape: tuple[str, str, int] | None = None
    try:
        for packet in container.demux(container.streams[index]):
            for frame in packet.decode():
                if not isinstance(frame, av.AudioFrame):
                    continue
                shape = (frame.format.name, frame.layout.name, frame.sample_rate)
                first_shape = first_shape or shape
                if shape != first_shape:
                    raise JobFailureError(
                        FailureCode.UNSUPPORTED_SOURCE,
                        f"the sound of stream {index} changes from {first_shape[1]}, {first_shape[2]} Hz to "
                        f"{shape[1]}, {shape[2]} Hz and cannot be converted: remux the file without it",
                    )
                stamp = frame.pts if frame.pts is not None or next_sample is not None else packet.pts
                if stamp is not None:
                    stamped_sample = round(stamp * packet.time_base * frame.sample_rate)
                    if next_sample is None or stamped_sample - next_sample > frame.sample_rate * _GAP_SECONDS:
                        next_sample = stamped_sample
                frame.pts = next_sample or 0
                frame.time_base = Fraction(1, frame.sample_rate)
                next_sample = frame.pts + frame.samples
                yield frame
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE, f"the sound of stream {index} cannot be decoded: remux the file without it"
        ) from error
