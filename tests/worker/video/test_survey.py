"""Bad input: every file that cannot be upscaled is refused with a reason; nothing else is touched to find out."""

import socket
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.frames import RgbFrame
from worker.video.survey import survey
from worker.video.values import shown

MakeVideo = Callable[..., Path]
LIMITS = VideoLimits()


def refusal(source: Path, **limits: float) -> JobFailureError:
    """Survey a file that must be refused, and return the refusal."""
    with pytest.raises(JobFailureError) as failure:
        survey(source, VideoLimits(**limits))
    assert "\n" not in failure.value.message
    assert str(source.parent) not in failure.value.message
    return failure.value


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "empty.mp4"
    source.touch()
    assert refusal(source).code is FailureCode.EMPTY_FILE


@pytest.mark.parametrize(
    "content",
    [b"just a text\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(500), bytes(range(256)) * 40, b"PK\x03\x04" + bytes(99)],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "note.mp4"
    source.write_bytes(content)
    assert refusal(source).code is FailureCode.NOT_A_VIDEO


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile other_tenant.mp4\n",
        b"file 'other_tenant.mp4'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother_tenant.ts\n#EXT-X-ENDLIST\n",
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>\n',
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 1234 RTP/AVP 96\n",
    ],
    ids=["ffconcat", "concat", "hls", "dash", "sdp"],
)
@pytest.mark.parametrize("name", ["source", "video.mp4", "list.m3u8", "list.ffconcat", "list.mpd", "list.sdp"])
def test_a_playlist_is_refused_under_any_name(make_video: MakeVideo, tmp_path: Path, name: str, content: bytes) -> None:
    make_video("other_tenant.mp4")
    make_video("other_tenant.ts", time_base=Fraction(1, 90000))
    source = tmp_path / name
    source.write_bytes(content)
    assert refusal(source).code is FailureCode.PLAYLIST_REFUSED


def test_no_playlist_reaches_another_host(tmp_path: Path) -> None:
    # given a host that counts its visitors
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        visitors: list[object] = []

        def receive() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                visitors.append(connection)
                connection.close()

        listener = threading.Thread(target=receive)
        listener.start()
        # when a playlist points at it, by several names
        for name in ("a.m3u8", "a.mp4", "source"):
            source = tmp_path / name
            source.write_text(
                f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="http://127.0.0.1:{port}/key"\n'
                f"#EXTINF:9,\nhttp://127.0.0.1:{port}/segment.ts\n#EXT-X-ENDLIST\n"
            )
            refusal(source)
        server.shutdown(socket.SHUT_RDWR)
        listener.join()
    # then nobody came
    assert not visitors


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "song.m4a"
    with av.open(str(source), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    failure = refusal(source)
    assert failure.code is FailureCode.NO_VIDEO_STREAM
    assert "audio" in failure.message


def test_a_cover_picture_does_not_make_a_song_a_video(tmp_path: Path, make_video: MakeVideo) -> None:
    film = make_video("film.mp4", cover=True, audio_tracks=1)
    source = tmp_path / "song.mp4"
    with av.open(str(film)) as whole, av.open(str(source), "w") as song:
        kept = {stream.index: song.add_stream_from_template(stream) for stream in whole.streams if stream.index > 0}
        for index, stream in kept.items():
            stream.disposition = whole.streams[index].disposition
        for packet in whole.demux():
            if packet.stream_index in kept and packet.dts is not None:
                packet.stream = kept[packet.stream_index]
                song.mux(packet)
    assert refusal(source).code is FailureCode.NO_VIDEO_STREAM


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "header.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        container.start_encoding()
    assert refusal(source).code is FailureCode.NO_FRAMES


def test_an_unknown_codec_is_refused(make_video: MakeVideo) -> None:
    source = make_video("strange.mp4")
    source.write_bytes(source.read_bytes().replace(b"avc1", b"zzzz"))
    assert refusal(source).code is FailureCode.UNSUPPORTED_CODEC


def test_an_mp4_without_its_index_is_refused(make_video: MakeVideo) -> None:
    source = make_video("recording.mp4", frames=50)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    failure = refusal(source)
    assert failure.code is FailureCode.NOT_A_VIDEO
    assert "index is missing" in failure.message


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_a_truncated_file_is_refused_with_its_position(make_video: MakeVideo, suffix: str) -> None:
    # given a file whose index comes first, cut off at two thirds
    source = make_video(
        f"cut.{suffix}",
        frames=100,
        time_base=Fraction(1, 1000) if suffix == "mkv" else Fraction(1, 12800),
        muxer_options={"movflags": "+faststart"} if suffix in ("mp4", "mov") else {},
        audio_tracks=1,
        audio_codec="mp2" if suffix == "avi" else "aac",
        options={"preset": "ultrafast", "crf": "5", "bf": "0"},
    )
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size * 2 // 3)
    # then the refusal says where it ends
    failure = refusal(source)
    assert failure.code is FailureCode.CORRUPT_FRAME
    assert " s" in failure.message


def test_a_damaged_frame_is_refused_with_its_position(make_video: MakeVideo) -> None:
    # given a lossless video with noise in the middle of the data of frame 20
    source = make_video("damaged.mkv", time_base=Fraction(1, 1000), frames=40, codec="ffv1", options={})
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
    content = bytearray(source.read_bytes())
    start = content.index(bytes(packet)) + packet.size // 2
    content[start : start + 64] = bytes(reversed(range(64)))
    source.write_bytes(content)
    # then the refusal names the place
    failure = refusal(source)
    assert failure.code is FailureCode.CORRUPT_FRAME
    assert "near frame" in failure.message


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_width": 63}, "64x48"),
        ({"max_height": 47}, "64x48"),
        ({"max_pixels": 3000}, "3000 pixels"),
        ({"max_frames": 10}, "10 frames"),
        ({"max_duration_seconds": 0.3}, "longer than"),
        ({"max_total_pixels": 64 * 48 * 10}, "30720 pixels in all"),
        ({"max_gap_seconds": 0.03}, "frame 1 comes more than 0.03 s after"),
    ],
)
def test_what_exceeds_a_limit_is_refused(make_video: MakeVideo, limits: dict[str, float], named: str) -> None:
    failure = refusal(make_video("big.mp4"), **limits)
    assert failure.code is FailureCode.LIMIT_EXCEEDED
    assert named in failure.message


def test_a_picture_that_changes_its_size_midway_is_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    small = make_video("small.ts", time_base=Fraction(1, 90000), frames=20)
    large = make_video(
        "large.ts", time_base=Fraction(1, 90000), frames=20, width=128, pts=[72000 + 3600 * n for n in range(20)]
    )
    source = tmp_path / "both.ts"
    source.write_bytes(small.read_bytes() + large.read_bytes())
    failure = refusal(source)
    assert failure.code is FailureCode.UNSUPPORTED_SOURCE
    assert "64x48" in failure.message
    assert "128x48" in failure.message


def test_frames_stamped_with_the_same_time_are_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a Matroska file in which frames 5 and 6 have one time
    good = make_video("good.mkv", time_base=Fraction(1, 1000), codec="mjpeg", options={}, pixel_format="yuvj420p")
    source = tmp_path / "stuck.mkv"
    with av.open(str(good)) as whole, av.open(str(source), "w") as stuck:
        stream = stuck.add_stream_from_template(whole.streams.video[0], opaque=True)
        for number, packet in enumerate(packet for packet in whole.demux(video=0) if packet.size):
            packet.stream = stream
            packet.pts = packet.dts = 200 if number in (5, 6) else 40 * number
            stuck.mux(packet)
    failure = refusal(source)
    assert failure.code is FailureCode.BAD_TIMESTAMPS
    assert "frame 6" in failure.message


def test_a_stream_without_times_is_refused(make_video: MakeVideo) -> None:
    source = make_video("bare.h264", time_base=Fraction(1, 25))
    assert refusal(source).code is FailureCode.BAD_TIMESTAMPS


@pytest.mark.parametrize("seed", range(20))
def test_a_file_with_random_damage_is_surveyed_or_refused_by_name(make_video: MakeVideo, seed: int) -> None:
    source = make_video("fuzzed.mp4", frames=10, audio_tracks=1)
    chance = np.random.default_rng(seed)
    content = bytearray(source.read_bytes())
    for place in chance.integers(0, len(content), size=30):
        content[place] ^= int(chance.integers(1, 256))
    source.write_bytes(content)
    try:
        facts = survey(source, VideoLimits(max_frames=100))
    except JobFailureError:
        return
    assert len(facts.frames) > 0


def test_an_avi_with_b_frames_gets_its_times_from_the_order_of_frames(make_video: MakeVideo) -> None:
    source = make_video(
        "old.avi", time_base=Fraction(1, 25), codec="mpeg4", options={"bf": "2", "qscale": "3"}, frames=20
    )
    table = survey(source, VideoLimits()).frames
    steps = {after - before for before, after in zip(table.pts, table.pts[1:], strict=False)}
    assert len(table) == 20
    assert steps == {1}


@pytest.mark.parametrize(
    ("x264", "location"), [("tff=1", "left"), ("tff=1:chromaloc=1", "center"), ("chromaloc=2", "topleft")]
)
def test_the_place_of_chroma_is_not_taken_for_the_order_of_fields(
    make_video: MakeVideo, x264: str, location: str
) -> None:
    source = make_video("clip.mkv", time_base=Fraction(1, 1000), options={"preset": "ultrafast", "x264-params": x264})
    assert survey(source, VideoLimits()).picture.colour.chroma_location == location


def test_a_picture_stored_bottom_up_comes_out_upright(make_video: MakeVideo, tmp_path: Path) -> None:
    # given an AVI whose header says that its uncompressed picture is stored bottom up: its height is positive
    source = make_video("clip.avi", codec="rawvideo", pixel_format="bgr24", options={}, time_base=Fraction(1, 25))
    upright = first_picture(source)
    content = bytearray(source.read_bytes())
    height_at = content.index(b"strf") + 16
    assert int.from_bytes(content[height_at : height_at + 4], "little", signed=True) == -48
    content[height_at : height_at + 4] = (48).to_bytes(4, "little")
    source.write_bytes(content)

    # then its last row is the first
    assert np.array_equal(first_picture(source), upright[::-1])


def first_picture(source: Path) -> RgbFrame:
    return next(decode_frames(source, survey(source, LIMITS), 0, 1, max_pixels=LIMITS.max_pixels)).rgb


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"preset": "medium", "x264-params": "keyint=15:open-gop=1:scenecut=0:bframes=3"}),
        ("libx265", {"preset": "ultrafast", "x265-params": "keyint=15:open-gop=1:bframes=3:log-level=error"}),
    ],
)
def test_a_recording_that_begins_amid_others_starts_at_its_first_whole_picture(
    make_video: MakeVideo, tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    # given a transport stream of which the first third has gone by
    broadcast = make_video(
        "broadcast.ts", time_base=Fraction(1, 90000), frames=60, codec=codec, options=options, picture=noise
    )
    whole = survey(broadcast, LIMITS)
    content = broadcast.read_bytes()
    tables, rest = content[: 3 * 188], content[len(content) // 3 // 188 * 188 :]
    source = tmp_path / "tuned-in.ts"
    source.write_bytes(tables + rest)

    facts = survey(source, LIMITS)

    # then what can be decoded is there, all of it, and what cannot is counted
    missing = 60 - len(facts.frames)
    assert 0 < missing < 40
    assert facts.frames.pts == whole.frames.pts[missing:]
    assert facts.frames.crc32 == whole.frames.crc32[missing:]
    assert "have no picture" in " ".join(facts.notes)
    assert facts.frames.concealed == ()


def noise(number: int, width: int, height: int) -> RgbFrame:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_packet_that_vanishes_in_the_decoder_is_noticed(make_video: MakeVideo) -> None:
    # given lossy video whose last packet is damaged: PyAV drops an error that comes behind a good frame
    source = make_video("damaged.mp4", frames=30, options={"preset": "medium", "bf": "2"})
    with av.open(str(source)) as container:
        last = [bytes(packet) for packet in container.demux(video=0) if packet.size][-1]
    source.write_bytes(source.read_bytes().replace(last, bytes(len(last))))

    failure = refusal(source)
    assert failure.code is FailureCode.CORRUPT_FRAME
    assert "--on-error conceal" in failure.message


@pytest.mark.parametrize("lost", [(), (20, 21)], ids=["steady", "two frames lost"])
def test_a_hole_in_the_steady_rate_of_a_broadcast_is_told(make_video: MakeVideo, lost: tuple[int, ...]) -> None:
    pts = [90000 + 3600 * number for number in range(50) if number not in lost]
    source = make_video("broadcast.ts", frames=len(pts), pts=pts, time_base=Fraction(1, 90000))
    told = [note for note in survey(source, LIMITS).notes if "gap" in note]
    assert len(told) == (1 if lost else 0)
    assert not lost or "a gap of up to 0.120 s, the first after frame 19" in told[0]


def test_texts_in_a_file_come_no_further_than_a_line(tmp_path: Path) -> None:
    # Given streams whose languages are a hundred thousand letters long
    source = tmp_path / "talkative.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [container.add_stream("pcm_s16le", rate=8000) for _ in range(3)]
        for sound in sounds:
            sound.metadata["language"] = "x" * 100_000
        for _ in range(4):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    assert source.stat().st_size > 300_000
    # When it is planned
    plan = make_plan(source, JobOptions(drop_unsupported=True), LIMITS, ".mkv")
    # Then neither the plan nor what clients are told is large
    assert [stream.language for stream in plan.survey.others] == ["x" * 35] * 3
    assert len(plan.model_dump_json()) < 10_000
    assert len(plan.source_info().model_dump_json()) < 2_000
    # And a plan that says more is none, whoever made it
    forged = plan.model_dump_json().replace("x" * 35, "x" * 100_000)
    with pytest.raises(ValidationError):
        Plan.model_validate_json(forged)


def test_a_strangers_text_is_shown_on_one_short_line() -> None:
    assert shown("a title") == "a title"
    assert shown("two\nlines") == "two?lines"
    assert len(shown("x" * 10**6)) == 80
