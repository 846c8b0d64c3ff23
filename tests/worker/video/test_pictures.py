"""PNG files of every kind as RGB, exactly, and nothing that is none."""

import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.pictures import check_compressed_chunks, check_png, read_png

MAX_PIXELS = 10_000


def write_png(path: Path, picture: np.ndarray, pixel_format: str) -> Path:
    encoder = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(picture, pixel_format)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pixel_format
    encoder.time_base = av.time_base
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


@pytest.mark.parametrize(
    ("pixel_format", "channels", "dtype"),
    [
        ("rgb24", 3, np.uint8),
        ("rgba", 4, np.uint8),
        ("gray", 0, np.uint8),
        ("rgb48be", 3, np.uint16),
        ("rgba64be", 4, np.uint16),
        ("gray16be", 0, np.uint16),
    ],
)
def test_every_kind_of_png_is_read_exactly(
    tmp_path: Path, pixel_format: str, channels: int, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    shape = (31, 45, channels) if channels else (31, 45)
    picture = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)

    read = read_png(write_png(tmp_path / "picture.png", picture, pixel_format), MAX_PIXELS)

    expected = picture[..., :3] if channels else np.repeat(picture[..., np.newaxis], 3, axis=-1)
    assert read.dtype == dtype
    assert np.array_equal(read, expected)


def test_a_picture_over_the_limit_is_refused(tmp_path: Path) -> None:
    large = write_png(tmp_path / "large.png", np.zeros((200, 300, 3), dtype=np.uint8), "rgb24")

    with pytest.raises(JobFailureError, match=r"large\.png is not a PNG of at most 10000 pixels") as caught:
        read_png(large, MAX_PIXELS)
    assert caught.value.code is FailureCode.NOT_A_VIDEO


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    # given a file that says it has 50,000 x 50,000 pixels
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content + bytes(100))

    with pytest.raises(JobFailureError, match=r"bomb\.png is not a PNG"):
        read_png(tmp_path / "bomb.png", MAX_PIXELS)


@pytest.mark.parametrize("content", [b"", b"text", b"#EXTM3U\nfile:///etc/passwd\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_png_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0001.png").write_bytes(content)

    with pytest.raises(JobFailureError, match=r"0001\.png is not a PNG"):
        read_png(tmp_path / "0001.png", MAX_PIXELS)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_text_or_profile_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes, pieces: int) -> None:
    # given a small PNG whose texts are 12 MB of zeros, in one piece or several
    path = write_png(tmp_path / "bomb.png", np.zeros((24, 32, 3), dtype=np.uint8), "rgb24")
    content = path.read_bytes()
    bomb = chunk(kind, b"name\0\0" + zlib.compress(bytes(12_000_000 // pieces), 9)) * pieces
    content = content[:33] + bomb + content[33:]
    assert len(content) < 20_000
    for part in (content, content[8:]):
        with pytest.raises(JobFailureError, match=r"bomb\.png holds texts or a profile of more than") as caught:
            check_compressed_chunks(part, "bomb.png")
        assert caught.value.code is FailureCode.LIMIT_EXCEEDED
    with pytest.raises(JobFailureError, match="holds texts or a profile"):
        check_png(content, "bomb.png")


def test_a_usual_text_or_profile_is_none(tmp_path: Path) -> None:
    path = write_png(tmp_path / "fine.png", np.zeros((24, 32, 3), dtype=np.uint8), "rgb24")
    content = path.read_bytes()
    texts = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a text")) + chunk(b"zTXt", b"no end") + chunk(b"iCCP", b"")
    header = check_png(content[:33] + texts + content[33:], "fine.png")
    assert (header.width, header.height, header.has_transparency) == (32, 24, False)
