"""Reading a multipart/form-data body as it arrives: small fields are collected, the file's bytes are handed on.

Starlette's `UploadFile` would write every byte twice, the first time before the API key is looked at.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import InvalidRequestError, MalformedBodyError, UploadTooLargeError

FILE_FIELD = "file"
# What a form may hold beside the file: boundaries, part headers, option fields, an epilogue.
FORM_OVERHEAD_BYTES = 64 * 1024
# Several times the options that there are. Without a limit, empty fields by the million would fill the memory.
MAX_FIELDS = 32


@dataclass
class Form:
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(
    content_type: str,
    chunks: AsyncIterable[bytes],
    max_file_bytes: int,
    check_fields: Callable[[dict[str, str]], object],
    write_file: Callable[[bytes], Awaitable[None]],
) -> Form:
    """Read a form with exactly one `file`; its bytes go to `write_file`.

    `check_fields` sees the fields that came before the file, so that a mistake in them is reported before gigabytes are
    sent. Raises `MalformedBodyError` for what is no complete form, `InvalidRequestError` for a wrong one.
    """
    try:
        parser = _Parser(content_type)
        received_bytes = 0
        checked = False
        async for chunk in chunks:
            received_bytes += len(chunk)
            if received_bytes > max_file_bytes + FORM_OVERHEAD_BYTES:
                raise UploadTooLargeError(max_file_bytes)
            parser.write(chunk)
            if parser.has_file and not checked:
                check_fields(parser.form.fields)
                checked = True
            for content in parser.take_file_content():
                await write_file(content)
    except FormParserError as error:
        raise MalformedBodyError(f"The form cannot be read: {error}") from error
    if not parser.is_complete:
        raise MalformedBodyError("The form ends before its closing boundary.")
    if not parser.has_file:
        raise InvalidRequestError(f"The form has no field {FILE_FIELD!r} with a file.")
    return parser.form


class _Parser:
    """python-multipart's callbacks, turned into a `Form` and pieces of the file."""

    def __init__(self, content_type: str) -> None:
        _, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary")
        if not boundary:
            raise MalformedBodyError("The Content-Type names no boundary.")
        self.form = Form()
        self.has_file = False
        self.is_complete = False
        self._file_content: list[bytes] = []
        self._header_name = b""
        self._header_value = b""
        self._part_name = ""
        self._part_content = bytearray()
        self._fields_bytes = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._continue_header_name,
                "on_header_value": self._continue_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._continue_part,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def take_file_content(self) -> list[bytes]:
        content, self._file_content = self._file_content, []
        return content

    def _begin_part(self) -> None:
        self._disposition = b""
        self._part_content.clear()

    def _continue_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _continue_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        self._part_name = parameters.get(b"name", b"").decode(errors="replace")
        if self._part_name == FILE_FIELD:
            if self.has_file:
                raise InvalidRequestError(f"The form has more than one {FILE_FIELD!r}; one job takes one file.")
            self.has_file = True
            self.form.filename = parameters.get(b"filename", b"").decode(errors="replace")
        elif self._part_name in self.form.fields:
            raise InvalidRequestError(f"The form has more than one field {self._part_name!r}.")
        elif len(self.form.fields) == MAX_FIELDS:
            raise InvalidRequestError(f"The form has more than {MAX_FIELDS} fields beside the file.")

    def _continue_part(self, data: bytes, start: int, end: int) -> None:
        if self._part_name == FILE_FIELD:
            self._file_content.append(data[start:end])
            return
        self._fields_bytes += end - start
        if self._fields_bytes > FORM_OVERHEAD_BYTES:
            raise InvalidRequestError(f"The form's fields hold more than {FORM_OVERHEAD_BYTES} bytes.")
        self._part_content += data[start:end]

    def _end_part(self) -> None:
        if self._part_name != FILE_FIELD:
            self.form.fields[self._part_name] = self._part_content.decode(errors="replace")

    def _end(self) -> None:
        self.is_complete = True
