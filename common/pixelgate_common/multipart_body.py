"""Files and fields out of a multipart/form-data body that is in memory as a whole.

Bodies here are bounded and small, and one picture's parsing must cost microseconds, not the temporary file and the
callbacks for each field that a streaming parser needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from pixelgate_common.errors import InvalidRequest

_MAX_HEAD_BYTES = 8192
_NEW_LINE = b"\r\n"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form: the field's name, the file's (None: it is no file), and what it holds."""

    name: str
    filename: str | None
    data: bytes

    def text(self) -> str:
        """Return what a field holds as text; raises `InvalidRequest` when it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{self.name} is not UTF-8.", field=self.name) from error


def read_files(content_type: str, body: bytes, field: str, max_files: int) -> list[bytes]:
    """Return the contents of all parts, which must be named `field`, in order.

    Raises `InvalidRequest` (422) when the body is not well-formed (RFC 7578), holds other fields or more than
    `max_files` parts.
    """
    files: list[bytes] = []
    for part in read_parts(content_type, body, field=field):
        if part.name != field:
            raise InvalidRequest(f"Files must be sent in fields named {field}, not {part.name!r}.", field=field)
        if len(files) == max_files:
            raise InvalidRequest(f"At most {max_files} files are taken in one request.", field=field)
        files.append(part.data)
    return files


def read_parts(content_type: str, body: bytes, *, field: str = "body") -> Iterator[Part]:
    """Yield the parts of a form in order; raises `InvalidRequest` about `field` where the body is not well-formed."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if (
        header.get_content_type() != "multipart/form-data"
        or not isinstance(boundary, str)
        or not 1 <= len(boundary) <= 70
    ):
        raise InvalidRequest("The body must be multipart/form-data with a boundary.", field=field)
    try:
        mark = b"--" + boundary.encode("ascii")
    except UnicodeEncodeError as error:
        raise InvalidRequest("The multipart boundary is not ASCII.", field=field) from error
    at = 0 if body.startswith(mark) else body.find(_NEW_LINE + mark) + len(_NEW_LINE)
    if not body.startswith(mark, at):
        raise _cut_short(field)
    separator = _NEW_LINE + mark
    at += len(mark)
    while not body.startswith(b"--", at):
        head_start = body.find(_NEW_LINE, at) + len(_NEW_LINE)
        if head_start < len(_NEW_LINE) or body[at : head_start - len(_NEW_LINE)].strip(b" \t"):
            raise _cut_short(field)
        head_end = body.find(_NEW_LINE * 2, head_start, head_start + _MAX_HEAD_BYTES)
        end = body.find(separator, max(head_end, head_start))
        if head_end < 0 or end < 0:
            raise _cut_short(field)
        name, filename = _names(body[head_start:head_end])
        yield Part(name, filename, body[head_end + 2 * len(_NEW_LINE) : end])
        at = end + len(separator)


def _names(head: bytes) -> tuple[str, str | None]:
    for line in head.decode("utf-8", errors="replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            part = Message()
            part["content-disposition"] = value.strip()
            name = part.get_param("name", header="content-disposition")
            filename = part.get_param("filename", header="content-disposition")
            return (
                name if isinstance(name, str) else "",
                None if filename is None else filename if isinstance(filename, str) else "",
            )
    return "", None


def _cut_short(field: str) -> InvalidRequest:
    return InvalidRequest("The multipart body is damaged or cut short.", field=field)
