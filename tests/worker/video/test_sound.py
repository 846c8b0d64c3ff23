"""Sound on its way to another codec: what cannot go there is named."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container
from worker.video.sound import Conversion, can_be_converted


def sound_file(path: Path, layout: str, rate: int) -> bytes:
    """A second of silence as AC-3 in a transport stream."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("ac3", rate=rate, layout=layout)
        for _ in range(rate // 1536):
            silence = np.zeros((stream.codec_context.layout.nb_channels, 1536), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(("layout", "rate"), [("mono", 48000), ("stereo", 44100)])
def test_sound_that_changes_midway_is_refused_by_name(tmp_path: Path, layout: str, rate: int) -> None:
    # given stereo at 48 kHz that goes on as something else
    source = tmp_path / "changing.ts"
    parts = [sound_file(tmp_path / "first.ts", "stereo", 48000), sound_file(tmp_path / "second.ts", layout, rate)]
    source.write_bytes(b"".join(parts))

    # when it is converted, then the failure says where and what to do
    conversion = Conversion(source, 10**6, 0, Container.WEBM)
    with av.open(str(source)) as original, av.open(io.BytesIO(), "w", format="webm") as output:
        conversion.add_to(output, original.streams[0])
        output.start_encoding()
        with pytest.raises(JobFailureError, match=f"changes from stereo, 48000 Hz to {layout}, {rate} Hz") as caught:
            output.mux(conversion.packets())
    assert caught.value.code is FailureCode.UNSUPPORTED_SOURCE


def test_sound_that_no_decoder_knows_cannot_be_converted(tmp_path: Path) -> None:
    # given Matroska whose sound is named as no codec is
    source = tmp_path / "sound.mka"
    with av.open(str(source), "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=48000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9216), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert can_be_converted(source, 10**6, 0, Container.WEBM)
    source.write_bytes(source.read_bytes().replace(b"A_FLAC", b"A_XXXX"))

    # then that is said, not stumbled over
    assert not can_be_converted(source, 10**6, 0, Container.WEBM)
