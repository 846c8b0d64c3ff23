"""A form means the same however the network cuts it."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.forms import MAX_FIELDS, Form, read_form

BODY = (
    b'--xyz\r\nContent-Disposition: form-data; name="crf"\r\n\r\n20\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a \\"b\\" \xc3\xa9.mp4"\r\n'
    b"Content-Type: video/mp4\r\n\r\n"
    b"film\r\n--xy\r\n--xyzz? no\r\n"
    b'\r\n--xyz\r\ncontent-disposition:form-data;name="codec"\r\n\r\nhevc\r\n--xyz--\r\n'
)


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_the_cuts_between_chunks_do_not_matter(cuts: list[int]) -> None:
    # Given the body in pieces
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in pairwise(edges)]
    content = bytearray()
    seen_before_the_file: list[dict[str, str]] = []

    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def write(piece: bytes) -> None:
        content.extend(piece)

    # When
    form = asyncio.run(
        read_form(
            "multipart/form-data; boundary=xyz",
            chunks(),
            max_file_bytes=1000,
            check_fields=lambda fields: seen_before_the_file.append(dict(fields)),
            write_file=write,
        )
    )

    # Then
    assert form == Form(filename='a "b" é.mp4', fields={"crf": "20", "codec": "hevc"})
    assert bytes(content) == b"film\r\n--xy\r\n--xyzz? no\r\n"
    assert seen_before_the_file[0]["crf"] == "20"
    assert len(seen_before_the_file) == 1


def test_more_fields_than_there_are_options_are_refused() -> None:
    # Given a form of many small fields
    parts = [b'--xyz\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n\r\n' % n for n in range(MAX_FIELDS + 1)]

    async def chunks() -> AsyncIterator[bytes]:
        yield b"".join([*parts, b"--xyz--\r\n"])

    async def write(piece: bytes) -> None:
        raise AssertionError("there is no file")

    # When, then
    with pytest.raises(InvalidRequestError, match="more than 32 fields"):
        asyncio.run(
            read_form(
                "multipart/form-data; boundary=xyz",
                chunks(),
                max_file_bytes=1000,
                check_fields=lambda fields: None,
                write_file=write,
            )
        )
