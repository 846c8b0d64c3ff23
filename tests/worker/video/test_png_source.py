"""Sequences of pictures as sources: in order, at their times, bit for bit; hostile zips refused by name."""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.settings import VideoLimits
from worker.video.png_sequence import SequenceFacts
from worker.video.png_source import is_picture_sequence, sha256_of_folder, take_in
from worker.video.values import Colour

Files = Mapping[str, bytes]
TakeIn = Callable[..., Path]
SHAPE = (24, 32)


def pixels(number: int, channels: int = 3, dtype: type = np.uint8) -> npt.NDArray[np.uint8 | np.uint16]:
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    full = int(np.iinfo(dtype).max)
    return np.random.default_rng(number).integers(0, full, shape, dtype=dtype, endpoint=True)


def png(picture: npt.NDArray[np.uint8 | np.uint16], pixel_format: str = "rgb24", **options: str) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(picture, pixel_format)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pixel_format
    encoder.time_base, encoder.options = Fraction(1, 25), options
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def numbered(count: int, name: str = "frame-{}.png") -> dict[str, bytes]:
    return {name.format(number + 1): png(pixels(number)) for number in range(count)}


def pack(path: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def raw_png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes, *before: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + body + chunk(b"IEND", b"")


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times(path: Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in decoded(path) if frame.pts is not None and frame.time_base]


@pytest.fixture
def taken(tmp_path: Path) -> TakeIn:
    """Take in a source; returns the file that is to be opened."""

    def take(source: Path, options: JobOptions | None = None, limits: VideoLimits | None = None) -> Path:
        return take_in(source, tmp_path / "pictures.mov", options or JobOptions(), limits or VideoLimits())

    return take


def refusal(taken: TakeIn, source: Path, **how: object) -> JobFailureError:
    """The named failure that a source meets; nothing must be left of it."""
    with pytest.raises(JobFailureError) as failure:
        taken(source, **how)
    assert [path.name for path in source.parent.iterdir() if path != source] == []
    return failure.value


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_pictures_become_a_video_their_bytes_untouched(tmp_path: Path, taken: TakeIn, compression: int) -> None:
    files = numbered(3)
    video = taken(pack(tmp_path / "source", files, compression))
    with av.open(str(video)) as container:
        assert [bytes(packet) for packet in container.demux(0) if packet.size] == list(files.values())
    assert times(video) == [Fraction(number, 25) for number in range(3)]


def test_a_folder_is_taken_like_a_zip_of_it(tmp_path: Path, taken: TakeIn) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    files = numbered(3)
    for name, content in {**files, ".DS_Store": b"clutter"}.items():
        (folder / name).write_bytes(content)
    assert is_picture_sequence(folder)
    of_folder = taken(folder).read_bytes()
    (tmp_path / "pictures.mov").unlink()
    assert taken(pack(tmp_path / "source", files)).read_bytes() == of_folder


def test_one_picture_is_enough(tmp_path: Path, taken: TakeIn) -> None:
    assert times(taken(pack(tmp_path / "source", numbered(1)))) == [0]


def test_pictures_are_shown_in_the_order_of_their_numbers(tmp_path: Path, taken: TakeIn) -> None:
    # given names that sort otherwise as text, and that are packed in another order still
    names = ["shot 2 frame 1.png", "shot 2 frame 2.png", "shot 2 frame 10.png", "Shot 10 frame 0009.PNG"]
    names += ["shot 10 frame 0010.png", "shot 10 frame 0010 b.png"]
    files = {name: png(pixels(number)) for number, name in enumerate(names)}
    shuffled = {name: files[name] for name in sorted(names, reverse=True)}
    frames = decoded(taken(pack(tmp_path / "source", shuffled)))
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.to_ndarray(), pixels(number)), names[number]


def test_a_zip_of_a_folder_with_a_system_s_clutter_is_taken(tmp_path: Path, taken: TakeIn) -> None:
    files = {
        "holiday/": b"",
        **numbered(2, "holiday/frame-{}.png"),
        "holiday/.DS_Store": b"clutter",
        "__MACOSX/holiday/._frame-1.png": b"clutter",
        "holiday/Thumbs.db": b"clutter",
    }
    assert len(decoded(taken(pack(tmp_path / "source", files)))) == 2


def test_a_video_is_opened_itself(make_video: Callable[..., Path], taken: TakeIn) -> None:
    source = make_video("clip.mp4")
    assert not is_picture_sequence(source)
    assert taken(source) == source


def test_a_frame_rate_for_a_video_is_refused(make_video: Callable[..., Path], taken: TakeIn) -> None:
    failure = refusal(taken, make_video("clip.mp4"), options=JobOptions(frame_rate="24"))
    assert failure.code is FailureCode.INVALID_OPTION


def test_what_was_made_is_not_made_again(tmp_path: Path, taken: TakeIn) -> None:
    source = pack(tmp_path / "source", numbered(2))
    made = taken(source)
    before = made.stat().st_mtime_ns
    source.write_bytes(b"PK\x03\x04 something else by now")
    assert taken(source).stat().st_mtime_ns == before


# --- times ------------------------------------------------------------------------------------------------------------


def facts(pts: tuple[int, ...], **more: object) -> bytes:
    told: dict[str, object] = {
        "made_by": "twostep-vsr 0",
        "width": 32,
        "height": 24,
        "time_base": "1001/30000",
        "pts": pts,
        "last_duration": 2,
        "average_rate": "30000/1001",
        "sample_aspect_ratio": "4/3",
        "display_matrix": None,
        "colour": Colour(matrix=0, range=2, primaries=2, transfer=2, conversion="", chroma_location="left"),
        "crop": None,
        "mastering_display": None,
        "content_light": None,
        "metadata": {"title": "A film"},
        "chapters": (),
    }
    return SequenceFacts.model_validate({**told, **more}).model_dump_json().encode()


def test_a_sequence_of_ours_brings_its_exact_times_and_what_else_is_known(tmp_path: Path, taken: TakeIn) -> None:
    # given times of 29.97 with an offset and a gap, a title, chapters, a shape of pixels and a turn
    turn = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    chapters = (
        {"start": "0/1", "end": "101/100", "metadata": {"title": "One"}},
        {"start": "101/100", "end": "5/1", "metadata": {"title": "Two"}},
    )
    told = facts((3, 4, 5, 900), display_matrix=turn, chapters=chapters)
    files = {**numbered(4), "sequence.json": told, "timestamps.txt": b"ignored"}
    video = taken(pack(tmp_path / "source", files))
    assert times(video) == [time * Fraction(1001, 30000) for time in (3, 4, 5, 900)]
    with av.open(str(video)) as container:
        assert container.metadata["title"] == "A film"
        found = [(part["start"] * part["time_base"], part["metadata"]["title"]) for part in container.chapters()]
        assert found == [(0, "One"), (Fraction(101, 100), "Two")]
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        last = [packet for packet in container.demux(0) if packet.size][-1]
        assert last.duration * last.time_base == 2 * Fraction(1001, 30000)
    assert decoded(video)[0].rotation == -90


def test_times_as_other_tools_write_them_are_exact(tmp_path: Path, taken: TakeIn) -> None:
    text = b"# timecode format v2\r\n10\r\n43.366667\n\n110.1\n"
    video = taken(pack(tmp_path / "source", {**numbered(3), "timestamps.txt": text}))
    assert times(video) == [Fraction(10, 1000), Fraction(43366667, 10**9), Fraction(1101, 10**4)]


def test_a_frame_rate_that_the_user_names_goes_before_all(tmp_path: Path, taken: TakeIn) -> None:
    files = {**numbered(3), "sequence.json": facts((0, 7))}
    video = taken(pack(tmp_path / "source", files), JobOptions(frame_rate="24000/1001"))
    assert times(video) == [number * Fraction(1001, 24000) for number in range(3)]


@pytest.mark.parametrize(
    ("beside", "complaint"),
    [
        ({"sequence.json": facts((0, 1))}, "sequence.json has times for 2 pictures, and there are 3"),
        ({"sequence.json": facts((0, 1, 1))}, "sequence.json do not rise at picture 1"),
        ({"sequence.json": facts((-1, 1, 2))}, "begin before zero"),
        ({"sequence.json": facts((0, 1, 2), last_duration=0)}, "do not rise at picture 2"),
        ({"sequence.json": facts((0, 1, 2), time_base="1/99999999999")}, "too fine"),
        ({"sequence.json": facts((0, 1, 10**12))}, "too fine"),
        ({"timestamps.txt": b"# timestamp format v2\n0\n1e5\n3\n"}, "no milliseconds for picture 1"),
        ({"timestamps.txt": b"0\n1\n2\n"}, "does not begin with '# timestamp format v2'"),
        ({"timestamps.txt": b"# timestamp format v2\n0\n1\n"}, "times for 2 pictures"),
        ({"timestamps.txt": b"# timestamp format v2\n"}, "times for 0 pictures"),
    ],
)
def test_times_that_are_not_the_pictures_are_refused(
    tmp_path: Path, taken: TakeIn, beside: Files, complaint: str
) -> None:
    failure = refusal(taken, pack(tmp_path / "source", {**numbered(3), **beside}))
    assert failure.code is FailureCode.BAD_TIMESTAMPS
    assert complaint in failure.message


@pytest.mark.parametrize("text", ["1e999999999/1", "1/0", "1" * 5000 + "/1", "0x10/1", "nan"])
def test_a_fraction_that_would_take_hours_to_read_is_none(tmp_path: Path, taken: TakeIn, text: str) -> None:
    told = json.loads(facts((0, 1, 2)))
    files = {**numbered(3), "sequence.json": json.dumps({**told, "time_base": text}).encode()}
    assert "sequence.json" in refusal(taken, pack(tmp_path / "source", files)).message


# --- pictures of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel_format", "channels", "dtype"),
    [
        ("gray", 1, np.uint8),
        ("rgb24", 3, np.uint8),
        ("rgba", 4, np.uint8),
        ("gray16be", 1, np.uint16),
        ("rgb48be", 3, np.uint16),
        ("rgba64be", 4, np.uint16),
    ],
)
def test_every_kind_of_picture_keeps_its_pixels(
    tmp_path: Path, taken: TakeIn, pixel_format: str, channels: int, dtype: type
) -> None:
    pictures = [pixels(number, channels, dtype) for number in range(2)]
    files = {f"{number}.png": png(picture, pixel_format) for number, picture in enumerate(pictures)}
    for frame, picture in zip(decoded(taken(pack(tmp_path / "source", files))), pictures, strict=True):
        assert frame.format.name == pixel_format
        assert np.array_equal(frame.to_ndarray(), picture)


def test_a_palette_with_transparent_colours_is_kept(tmp_path: Path, taken: TakeIn) -> None:
    # given four pixels of four colours, one of them half and one wholly transparent
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture = raw_png(
        4, 1, 2, 3, b"\x00" + bytes([0b00011011]), chunk(b"PLTE", palette), chunk(b"tRNS", bytes([255, 128, 0]))
    )
    frame = decoded(taken(pack(tmp_path / "source", {"1.png": picture})))[0]
    assert frame.reformat(format="rgba").to_ndarray().tolist() == [
        [[255, 0, 0, 255], [0, 255, 0, 128], [0, 0, 255, 0], [9, 9, 9, 255]]
    ]


def test_an_interlaced_picture_is_taken(tmp_path: Path, taken: TakeIn) -> None:
    # given a picture stored in Adam7's seven passes, as Pillow's reader confirms
    from PIL import Image

    picture = pixels(0)
    rows = b""
    for left, top, right_step, down_step in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)):
        rows += b"".join(b"\0" + row.tobytes() for row in picture[top::down_step, left::right_step])
    for left, top, right_step, down_step in ((1, 0, 2, 2), (0, 1, 1, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in picture[top::down_step, left::right_step])
    content = bytearray(raw_png(32, 24, 8, 2, rows))
    content[28] = 1
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    source = pack(tmp_path / "source", {"1.png": bytes(content)})
    (tmp_path / "interlaced.png").write_bytes(content)
    with Image.open(tmp_path / "interlaced.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    assert np.array_equal(decoded(taken(source))[0].to_ndarray(), picture)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("gray", 1, np.uint8), ("rgb24", 3, np.uint8)], "rgb24"),
        ([("rgb24", 3, np.uint8), ("rgba", 4, np.uint8)], "rgba"),
        ([("gray", 1, np.uint8), ("gray16be", 1, np.uint16)], "gray16be"),
        ([("rgb24", 3, np.uint8), ("rgb48be", 3, np.uint16)], "rgb48be"),
        ([("gray", 1, np.uint8), ("rgba64be", 4, np.uint16), ("rgb48be", 3, np.uint16)], "rgba64be"),
    ],
)
def test_pictures_of_several_kinds_become_one_that_holds_them_all(
    tmp_path: Path, taken: TakeIn, kinds: list[tuple[str, int, type]], expected: str
) -> None:
    # given a sequence of which some pictures were written as grey, or without transparency, as programs do
    pictures = [pixels(number, channels, dtype) for number, (_, channels, dtype) in enumerate(kinds)]
    files = {f"{n}.png": png(picture, kinds[n][0]) for n, picture in enumerate(pictures)}
    # then every pixel keeps its value, and what had no transparency is opaque
    deep = expected in ("gray16be", "rgb48be", "rgba64be")
    channels = {"gray16be": 1, "rgb24": 3, "rgb48be": 3}.get(expected, 4)
    frames = decoded(taken(pack(tmp_path / "source", files)))
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.format.name == expected
        wanted = picture.astype(int) * (257 if deep and picture.dtype == np.uint8 else 1)
        if wanted.ndim == 2 and channels > 1:
            wanted = np.repeat(wanted[..., np.newaxis], 3, axis=-1)
        if channels == 4 and wanted.shape[-1] == 3:
            wanted = np.concatenate([wanted, np.full((*SHAPE, 1), 65535 if deep else 255)], axis=-1)
        assert np.array_equal(frame.to_ndarray(), wanted)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "code", "complaint"),
    [
        ({}, FailureCode.NO_FRAMES, "there are no PNG pictures"),
        ({"sequence.json": facts((0,))}, FailureCode.NO_FRAMES, "there are no PNG pictures"),
        ({"1.png": b"text"}, FailureCode.NOT_A_VIDEO, "1.png is not a PNG picture"),
        ({"1.png": b""}, FailureCode.NOT_A_VIDEO, "1.png is not a PNG picture"),
        ({**numbered(1), "a.jpg": b""}, FailureCode.NOT_A_VIDEO, "a.jpg is not a PNG picture"),
        ({**numbered(1), "sequence.json": b"{}"}, FailureCode.NOT_A_VIDEO, "sequence.json is not a PNG picture"),
        ({**numbered(1, "a/{}.png"), **numbered(1, "b/{}.png")}, FailureCode.NOT_A_VIDEO, "several folders (a, b)"),
        (
            {**numbered(2), "frame-3.png": png(np.zeros((24, 30, 3), np.uint8))},
            FailureCode.UNSUPPORTED_SOURCE,
            "frame-3.png is 30x24, the pictures before it 32x24",
        ),
        ({**numbered(2), "frame-3.png": png(pixels(3))[:-20]}, FailureCode.CORRUPT_FRAME, "frame-3.png is cut off"),
        (
            {**numbered(2), "frame-3.png": png(pixels(3)).replace(b"IDAT", b"IDAZ")},
            FailureCode.CORRUPT_FRAME,
            "frame-3.png is damaged",
        ),
        (
            {"1.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))},
            FailureCode.LIMIT_EXCEEDED,
            "1.png is 50000x50000",
        ),
        (
            {"1.png": png(pixels(0)) + bytes(9_000_000)},
            FailureCode.LIMIT_EXCEEDED,
            "1.png has more than",
        ),
        ({"bad\nname\x1b.txt": b""}, FailureCode.NOT_A_VIDEO, "bad?name?.txt is not a PNG"),
    ],
)
def test_what_is_no_sequence_is_refused_with_the_name_of_the_file(
    tmp_path: Path, taken: TakeIn, files: Files, code: FailureCode, complaint: str
) -> None:
    failure = refusal(taken, pack(tmp_path / "source", files, zipfile.ZIP_DEFLATED))
    assert (failure.code, complaint in failure.message) == (code, True), failure.message


@pytest.mark.parametrize("name", ["../../escaped.png", "/etc/escaped.png", "..\\..\\escaped.png", "C:\\escaped.png"])
def test_no_name_in_a_zip_becomes_a_path(tmp_path: Path, taken: TakeIn, name: str) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    source = pack(inside / "source", {name: png(pixels(0))})
    if ".." in name:
        refusal(taken, source)  # hidden, as every name that begins with a dot
    else:
        assert len(decoded(taken(source))) == 1
    assert not [path for path in tmp_path.rglob("*escaped*")]


def test_too_many_pictures_or_bytes_are_refused(tmp_path: Path, taken: TakeIn) -> None:
    source = pack(tmp_path / "source", numbered(3))
    assert "there are 3 pictures; the limit is 2" in refusal(taken, source, limits=VideoLimits(max_frames=2)).message
    failure = refusal(taken, source, limits=VideoLimits(max_unpacked_bytes=1000))
    assert failure.code is FailureCode.LIMIT_EXCEEDED
    assert "bytes; the limit is 1000" in failure.message


def test_an_encrypted_zip_is_refused(tmp_path: Path, taken: TakeIn) -> None:
    # given members that are marked as encrypted
    source = pack(tmp_path / "source", numbered(1))
    content = bytearray(source.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 8] |= 1
    source.write_bytes(content)
    assert "frame-1.png is encrypted" in refusal(taken, source).message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, taken: TakeIn) -> None:
    with zipfile.ZipFile(tmp_path / "source", "w") as archive:
        archive.writestr("1.png", png(pixels(0)))
        archive.writestr("1.png", png(pixels(1)))
    assert "it holds 1.png 2 times" in refusal(taken, tmp_path / "source").message


def test_unusual_compression_is_refused(tmp_path: Path, taken: TakeIn) -> None:
    source = pack(tmp_path / "source", numbered(1), zipfile.ZIP_BZIP2)
    assert "packed in an unusual way" in refusal(taken, source).message


def test_a_member_whose_checksum_is_wrong_is_refused_by_name(tmp_path: Path, taken: TakeIn) -> None:
    # given a picture of which one byte was changed in the zip
    source = pack(tmp_path / "source", numbered(2))
    content = bytearray(source.read_bytes())
    content[content.index(b"frame-2.png") + 300] ^= 1
    source.write_bytes(content)
    failure = refusal(taken, source)
    assert failure.code is FailureCode.CORRUPT_FRAME
    assert "frame-2.png" in failure.message


def test_a_member_that_says_it_is_small_is_not_unpacked_beyond_what_it_says(tmp_path: Path, taken: TakeIn) -> None:
    # given a deflated picture with 5 MB of zeros behind it, and a directory that denies them
    picture = png(pixels(0))
    source = pack(tmp_path / "source", {"1.png": picture + bytes(5_000_000)}, zipfile.ZIP_DEFLATED)
    content = source.read_bytes()
    truth, lie = struct.pack("<I", len(picture) + 5_000_000), struct.pack("<I", len(picture))
    source.write_bytes(content.replace(truth, lie))
    failure = refusal(taken, source)
    assert failure.code is FailureCode.CORRUPT_FRAME


def test_a_list_of_members_that_claims_gigabytes_is_not_read(tmp_path: Path, taken: TakeIn) -> None:
    # given a sparse file whose end says that a list of half a gigabyte lies before it
    source = tmp_path / "source"
    claimed = 512 * 1024 * 1024
    with source.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(claimed + 4)
        file.seek(claimed + 4)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, claimed, 4, 0))
    assert "its list of files is too long" in refusal(taken, source).message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6), cut=st.integers(0, 400))
def test_damage_anywhere_gives_a_video_or_a_named_failure(
    tmp_path: Path, taken: TakeIn, places: list[tuple[int, int]], cut: int
) -> None:
    source = pack(tmp_path / "source", {**numbered(2), "sequence.json": facts((0, 1))}, zipfile.ZIP_DEFLATED)
    content = bytearray(source.read_bytes())
    for place, change in places:
        content[place % len(content)] ^= change
    content[:4] = b"PK\x03\x04"
    source.write_bytes(content[: len(content) - cut])
    (tmp_path / "pictures.mov").unlink(missing_ok=True)
    try:
        taken(source)
    except JobFailureError:
        return
    assert (tmp_path / "pictures.mov").exists()


def test_the_digest_of_a_folder_tells_any_change_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for name, content in numbered(3).items():
        (folder / name).write_bytes(content)
    before = sha256_of_folder(folder)
    (folder / ".hidden").write_bytes(b"clutter")
    os.utime(folder / "frame-1.png", (0, 0))
    assert sha256_of_folder(folder) == before
    (folder / "frame-2.png").rename(folder / "frame-4.png")
    assert sha256_of_folder(folder) != before


def test_a_stop_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    left = iter(range(5))

    def stop() -> None:
        if next(left, None) is None:
            raise StopError

    (tmp_path / "out").mkdir()
    source = pack(tmp_path / "source", numbered(4))
    with pytest.raises(StopError):
        take_in(source, tmp_path / "out" / "pictures.mov", JobOptions(), VideoLimits(), stop)
    assert list((tmp_path / "out").iterdir()) == []
