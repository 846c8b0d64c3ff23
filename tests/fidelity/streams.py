"""Rows: everything in the file that is not the picture."""

from fractions import Fraction
from pathlib import Path

from tests.fidelity.charts import COPY, LOSSLESS_H264, tone, write_chart
from tests.fidelity.pgs import write_pgs
from tests.fidelity.row import Row, Upscaled
from tests.fidelity.witness import Witness, ffmpeg

_VIDEO = (*LOSSLESS_H264, "-pix_fmt", "yuv420p")
_SUBTITLES = """1
00:00:00,120 --> 00:00:00,480
Good evening.

2
00:00:00,600 --> 00:00:00,920
<i>Who is there?</i>
"""
_ASS = r"""[Script Info]
ScriptType: v4.00+
PlayResX: 64

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Alignment
Style: Default,Chart Sans,20,&H00FFFFFF,2

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.10,0:00:00.50,Default,,0,0,0,,{\pos(32,20)\fs24}Over {\b1}there{\b0}
Dialogue: 1,0:00:00.30,0:00:00.80,Default,,0,0,0,,both at once
"""


_CHAPTERS = """;FFMETADATA1
[CHAPTER]
TIMEBASE=1/1000
START=0
END=240
title=Arrival
[CHAPTER]
TIMEBASE=1/1000
START=240
END=700
title=The long middle \\= with, signs\\; ünd umlauts
[CHAPTER]
TIMEBASE=1/1000
START=700
END=960
title=End
"""


def chapters_file(folder: Path) -> Path:
    path = folder / "chapters.txt"
    path.write_text(_CHAPTERS)
    return path


# --- sound -----------------------------------------------------------------------------------------------------------


def write_surround_and_commentary(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mkv",
        *tone(),
        *tone(pitch=880),
        *("-map", "0:v", "-map", "1:a", "-map", "2:a", *_VIDEO),
        *("-filter:a:0", "pan=5.1|FL=c0|FR=0.9*c0|FC=0.8*c0|LFE=0.1*c0|BL=0.3*c0|BR=0.2*c0", "-c:a:0", "ac3"),
        *("-c:a:1", "libopus", "-metadata:s:a:0", "language=eng", "-metadata:s:a:0", "title=Surround 5.1"),
        *("-metadata:s:a:1", "language=deu", "-metadata:s:a:1", "title=Kommentar der Regie"),
        *("-disposition:a:0", "default", "-disposition:a:1", "comment+hearing_impaired"),
    )
    surround, commentary = Witness(path).of_kind("audio")
    assert (surround.facts["channels"], surround.facts["codec_name"]) == (6, "ac3")
    assert commentary.dispositions == {"comment", "hearing_impaired"}
    return path


def assert_surround_and_commentary(upscaled: Upscaled) -> None:
    surround, commentary = upscaled.result.of_kind("audio")
    assert surround.facts["channel_layout"] == "5.1(side)"
    assert (surround.tags["language"], surround.tags["title"]) == ("eng", "Surround 5.1")
    assert (commentary.tags["language"], commentary.tags["title"]) == ("deu", "Kommentar der Regie")


def write_two_languages_in_mp4(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *(*tone(), *tone(pitch=550), "-map", "0:v", "-map", "1:a", "-map", "2:a", *_VIDEO, "-c:a:0", "aac"),
        *("-c:a:1", "ac3", "-metadata:s:a:0", "language=fra", "-metadata:s:a:1", "language=jpn"),
        *("-metadata:s:a:1", "handler_name=Second language", "-disposition:a:0", "0", "-disposition:a:1", "default"),
    )
    assert [sound.tags["language"] for sound in Witness(path).of_kind("audio")] == ["fra", "jpn"]
    return path


def assert_two_languages_in_mp4(upscaled: Upscaled) -> None:
    handlers = [stream.tags.get("handler_name") for stream in upscaled.result.of_kind("audio")]
    assert handlers == [stream.tags.get("handler_name") for stream in upscaled.source.of_kind("audio")]


# --- subtitles -------------------------------------------------------------------------------------------------------


def write_styled_subtitles_with_fonts(folder: Path) -> Path:
    (folder / "styled.ass").write_text(_ASS)
    for name, content in (("Chart Sans.ttf", bytes(range(256)) * 9), ("Chart Serif.otf", b"OTTO" + bytes(999))):
        (folder / name).write_bytes(content)
    path = write_chart(
        folder / "source.mkv",
        *("-i", folder / "styled.ass", "-map", "0:v", "-map", "1:s", *_VIDEO, "-c:s", "copy"),
        *("-attach", folder / "Chart Sans.ttf", "-attach", folder / "Chart Serif.otf"),
        *("-metadata:s:t:0", "mimetype=font/ttf", "-metadata:s:t:1", "mimetype=font/otf"),
        *("-metadata:s:s:0", "language=nor", "-metadata:s:s:0", "title=Signs", "-disposition:s:0", "default+forced"),
    )
    source = Witness(path)
    assert [stream.tags["filename"] for stream in source.of_kind("attachment")] == ["Chart Sans.ttf", "Chart Serif.otf"]
    assert source.of_kind("subtitle")[0].facts["codec_name"] == "ass"
    return path


def assert_styled_subtitles_with_fonts(upscaled: Upscaled) -> None:
    before, after = (witness.of_kind("subtitle")[0] for witness in (upscaled.source, upscaled.result))
    assert after.facts["extradata_hash"] == before.facts["extradata_hash"]  # the styles
    assert after.dispositions == {"default", "forced"}


def write_text_subtitles_in_mp4(folder: Path) -> Path:
    (folder / "lines.srt").write_text(_SUBTITLES)
    path = write_chart(
        folder / "source.mp4",
        *("-i", folder / "lines.srt", "-i", folder / "lines.srt", "-map", "0:v", "-map", "1:s", "-map", "2:s", *_VIDEO),
        *("-c:s", "mov_text", "-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=spa"),
    )
    assert [stream.facts["codec_name"] for stream in Witness(path).of_kind("subtitle")] == ["mov_text", "mov_text"]
    return path


def write_text_subtitles_in_webm(folder: Path) -> Path:
    (folder / "lines.srt").write_text(_SUBTITLES)
    path = write_chart(
        folder / "source.webm",
        *("-i", folder / "lines.srt", "-map", "0:v", "-map", "1:s", "-c:v", "libvpx-vp9", "-lossless", "1"),
        *("-cpu-used", "8", "-pix_fmt", "yuv420p", "-c:s", "webvtt", "-metadata:s:s:0", "language=fin"),
    )
    assert [stream.facts["codec_name"] for stream in Witness(path).of_kind("subtitle")] == ["webvtt"]
    return path


def write_bitmap_subtitles(folder: Path) -> Path:
    blu_ray = write_pgs(folder / "blu-ray.sup", [(0.12, 0.48), (0.6, 0.92)], (64, 48))
    dvd, timed_dvd = folder / "dvd.mkv", folder / "timed.mkv"
    ffmpeg("-i", blu_ray, "-c:s", "dvdsub", dvd)
    # FFmpeg's conversion gives no end to a picture that a later one takes away.
    ffmpeg("-i", dvd, "-map", "0", *COPY, "-bsf:s", "setts=pts=N*480+120:dts=N*480+120:duration=360", timed_dvd)
    path = write_chart(
        folder / "source.mkv",
        *("-i", blu_ray, "-i", timed_dvd, "-map", "0:v", "-map", "1:s", "-map", "2:s", *_VIDEO),
        *("-c:s", "copy", "-metadata:s:s:0", "language=ita", "-metadata:s:s:1", "language=por"),
    )
    pgs, dvd_subtitles = Witness(path).of_kind("subtitle")
    assert (pgs.facts["codec_name"], dvd_subtitles.facts["codec_name"]) == ("hdmv_pgs_subtitle", "dvd_subtitle")
    assert [packet.duration for packet in dvd_subtitles.packets] == [Fraction(36, 100)] * 2
    return path


# --- chapters, covers, words -----------------------------------------------------------------------------------------


def write_chapters_in_mkv(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-i", chapters_file(folder), "-map_metadata", "1", *_VIDEO)
    assert len(Witness(path).chapters) == 3
    return path


def write_chapters_in_mp4(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *tone(), "-i", chapters_file(folder), "-map_metadata", "2", *_VIDEO)
    source = Witness(path)
    assert len(source.chapters) == 3
    assert [stream.facts["codec_tag_string"] for stream in source.of_kind("data")] == ["text"]
    return path


def write_cover_in_mp4(folder: Path) -> Path:
    cover = write_chart(folder / "cover.png", frames=1, size=(40, 40))
    path = write_chart(
        folder / "source.mp4",
        *("-i", cover, "-map", "0:v", "-map", "1:v", *_VIDEO, "-c:v:1", "copy", "-disposition:v:1", "attached_pic"),
    )
    assert [stream.facts["codec_name"] for stream in Witness(path).of_kind("picture")] == ["png"]
    return path


def write_cover_in_mkv(folder: Path) -> Path:
    cover = write_chart(folder / "cover.jpg", "-pix_fmt", "yuvj420p", frames=1, size=(40, 40))
    path = write_chart(
        folder / "source.mkv",
        *(*_VIDEO, "-attach", cover, "-metadata:s:t:0", "mimetype=image/jpeg", "-metadata:s:t:0", "filename=cover.jpg"),
    )
    [picture] = Witness(path).of_kind("picture")
    assert picture.tags["filename"] == "cover.jpg"
    return path


def assert_cover_in_mkv(upscaled: Upscaled) -> None:
    [before], [after] = (witness.of_kind("picture") for witness in (upscaled.source, upscaled.result))
    assert (after.tags["filename"], after.tags["mimetype"]) == (before.tags["filename"], before.tags["mimetype"])


def write_two_video_streams(folder: Path) -> Path:
    """The second is the one marked as default: that is the one to upscale."""
    small = write_chart(folder / "small.mkv", *_VIDEO, size=(32, 32), rate="10", frames=10)
    path = write_chart(
        folder / "source.mkv",
        *("-i", small, "-map", "1:v", "-map", "0:v", "-c:v:0", "copy", "-c:v:1", "libx264", "-qp:v:1", "0"),
        *("-preset", "ultrafast", "-pix_fmt:v:1", "yuv420p", "-disposition:v:0", "0", "-disposition:v:1", "default"),
        *("-metadata:s:v:0", "title=Other angle"),
    )
    videos = Witness(path).of_kind("video")
    assert [stream.facts["width"] for stream in videos] == [32, 64]
    assert [stream.dispositions for stream in videos] == [set(), {"default"}]
    return path


def assert_two_video_streams(upscaled: Upscaled) -> None:
    assert [stream.facts["width"] for stream in upscaled.result.of_kind("video")] == [32, 128]


def write_words_in_mp4(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *(
            *tone(),
            *_VIDEO,
            "-metadata",
            "title=Größe & <Ruhm>",
            "-metadata",
            "artist=Somebody",
            "-metadata",
            "date=1999",
        ),
        *(
            "-metadata",
            "comment=two\nlines",
            "-metadata",
            "genre=Test",
            "-metadata",
            "creation_time=2001-02-03T04:05:06Z",
        ),
        *(
            "-metadata:s:v:0",
            "handler_name=Camera B",
            "-metadata:s:v:0",
            "language=gle",
            "-metadata:s:a:0",
            "language=eng",
        ),
    )
    source = Witness(path)
    assert {"title", "artist", "date", "comment", "genre", "creation_time"} <= source.tags.keys()
    assert source.video.tags["handler_name"] == "Camera B"
    return path


def assert_words_in_mp4(upscaled: Upscaled) -> None:
    assert upscaled.result.tags["title"] == "Größe & <Ruhm>"
    assert upscaled.result.tags["creation_time"].startswith("2001-02-03T04:05:06")
    assert upscaled.result.video.tags["handler_name"] == "Camera B"


def write_words_in_mov(folder: Path) -> Path:
    """Apple's own list of keys, as telephones write it, with the place of the recording."""
    path = write_chart(
        folder / "source.mov",
        *(*_VIDEO, "-movflags", "use_metadata_tags", "-metadata", "com.apple.quicktime.make=Apple"),
        *("-metadata", "com.apple.quicktime.location.ISO6709=+52.5200+013.4050+034.000/"),
    )
    assert "com.apple.quicktime.location.ISO6709" in Witness(path).tags
    return path


def write_words_in_mkv(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mkv",
        *(
            *tone(),
            *_VIDEO,
            "-metadata",
            "title=A title",
            "-metadata",
            "DIRECTOR=Somebody",
            "-metadata",
            "x-own-key=kept",
        ),
        *("-metadata:s:v:0", "title=The picture", "-metadata:s:v:0", "language=isl", "-metadata:s:a:0", "X-MOOD=calm"),
    )
    assert {"title", "DIRECTOR", "X-OWN-KEY"} <= Witness(path).tags.keys()
    return path


def write_everything_at_once(folder: Path) -> Path:
    """In an order of its own: subtitles first, then sound, then the picture."""
    (folder / "styled.ass").write_text(_ASS)
    (folder / "Chart Sans.ttf").write_bytes(bytes(range(256)) * 9)
    cover = write_chart(folder / "cover.jpg", "-pix_fmt", "yuvj420p", frames=1, size=(40, 40))
    path = write_chart(
        folder / "source.mkv",
        *("-i", folder / "styled.ass", *tone(), *tone(pitch=660), "-i", chapters_file(folder)),
        *("-map", "1:s", "-map", "2:a", "-map", "0:v", "-map", "3:a", "-map_metadata", "4", *_VIDEO),
        *("-c:s", "copy", "-c:a:0", "flac", "-c:a:1", "libopus", "-metadata", "title=All of it"),
        *("-attach", folder / "Chart Sans.ttf", "-attach", cover),
        *("-metadata:s:t:0", "mimetype=font/ttf", "-metadata:s:t:1", "mimetype=image/jpeg"),
        *("-metadata:s:t:1", "filename=cover.jpg", "-metadata:s:a:1", "language=dan"),
    )
    kinds = [stream.kind for stream in Witness(path).streams]
    assert kinds == ["subtitle", "audio", "video", "audio", "attachment", "picture"]
    return path


def assert_everything_at_once(upscaled: Upscaled) -> None:
    kinds = [stream.kind for stream in upscaled.result.streams]
    assert kinds[:4] == ["subtitle", "audio", "video", "audio"]
    assert sorted(kinds[4:]) == ["attachment", "picture"]


# --- data ------------------------------------------------------------------------------------------------------------


def write_timecode_track(folder: Path) -> Path:
    path = write_chart(folder / "source.mov", *_VIDEO, "-timecode", "01:02:03:04")
    [data] = Witness(path).of_kind("data")
    assert (data.facts["codec_tag_string"], data.tags["timecode"]) == ("tmcd", "01:02:03:04")
    return path


def assert_timecode_track(upscaled: Upscaled) -> None:
    [data] = upscaled.result.of_kind("data")
    assert (data.facts["codec_tag_string"], data.tags["timecode"]) == ("tmcd", "01:02:03:04")


def write_telemetry_in_mp4(folder: Path, kinds: tuple[bytes, ...] = (b"gpmd",)) -> Path:
    """What action cameras record beside the picture.

    Written as subtitles, which are then given other names: no muxer writes such tracks anew.
    """
    (folder / "lines.srt").write_text(_SUBTITLES)
    maps = [word for number in range(len(kinds)) for word in ("-map", f"{number + 1}:s")]
    lines = ("-i", folder / "lines.srt") * len(kinds)
    path = write_chart(folder / "source.mp4", *lines, "-map", "0:v", *maps, *_VIDEO, "-c:s", "mov_text")
    content = path.read_bytes().replace(b"sbtl", b"meta")
    for kind in kinds:
        content = content.replace(b"tx3g", kind, 1)
    path.write_bytes(content)
    data = Witness(path).of_kind("data")
    assert [stream.facts["codec_tag_string"].encode() for stream in data] == list(kinds)
    return path


def assert_telemetry_in_mp4(upscaled: Upscaled) -> None:
    assert [stream.facts["codec_tag_string"] for stream in upscaled.result.of_kind("data")] == ["gpmd"]


def write_private_data_in_a_broadcast(folder: Path) -> Path:
    """A stream of which the broadcast says no more than that it is private."""
    private = folder / "private.bin"
    private.write_bytes(bytes(range(256)) * 16)
    path = write_chart(
        folder / "source.ts",
        *("-f", "data", "-i", private, "-map", "0:v", "-map", "1:d", *_VIDEO, "-c:d", "copy"),
        *("-bsf:d", "setts=pts=N*24000:dts=N*24000"),
    )
    assert [stream.facts["codec_tag_string"] for stream in Witness(path).of_kind("data")] == ["[6][0][0][0]"]
    return path


ROWS = (
    Row(write_surround_and_commentary, assert_surround_and_commentary),
    Row(write_two_languages_in_mp4, assert_two_languages_in_mp4),
    Row(write_styled_subtitles_with_fonts, assert_styled_subtitles_with_fonts),
    Row(write_text_subtitles_in_mp4),
    Row(write_text_subtitles_in_webm),
    Row(write_bitmap_subtitles),
    Row(write_chapters_in_mkv),
    Row(write_chapters_in_mp4, outcomes={2: "rewritten"}),
    Row(write_chapters_in_mp4, suffix=".mkv", outcomes={2: "rewritten"}, name="chapters_of_mp4_in_mkv"),
    Row(write_cover_in_mp4),
    Row(write_cover_in_mkv, assert_cover_in_mkv),
    Row(write_two_video_streams, assert_two_video_streams),
    Row(write_words_in_mp4, assert_words_in_mp4),
    Row(write_words_in_mov),
    Row(write_words_in_mkv),
    Row(write_everything_at_once, assert_everything_at_once),
    Row(write_timecode_track, assert_timecode_track, outcomes={1: "rewritten"}),
    Row(write_telemetry_in_mp4, assert_telemetry_in_mp4),
)
