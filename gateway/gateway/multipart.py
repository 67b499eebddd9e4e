"""Multipart bodies, parsed so that memory stays small: a file's bytes go to a temporary file after the first 64 KB."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from pixelgate_common.errors import InvalidRequest, OutOfSpace
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

MAX_FIELD_BYTES = 256 * 1024
MAX_FIELDS = 300


@dataclass(frozen=True, slots=True)
class Form:
    """A parsed form: its files and its text fields, in the order sent."""

    files: list[tuple[str, UploadFile]]
    fields: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """Return all values of a text field."""
        return [value for field, value in self.fields if field == name]

    def check_names(self, *, files: Sequence[str], fields: Sequence[str]) -> None:
        """Raise `InvalidRequest` when the form has a field that is not known here, or is one of the other kind."""
        for name, _ in self.files:
            if name not in files:
                raise InvalidRequest(f"There is no file field {name!r} here; files go into {files[0]!r}.", field=name)
        for name, _ in self.fields:
            if name in files:
                raise InvalidRequest("A file is needed here (with a file name), not a text.", field=name)
            if name not in fields:
                raise InvalidRequest(f"There is no field {name!r} here; known are {', '.join(fields)}.", field=name)


class _Parser(MultiPartParser):
    """Starlette's parser with a smaller share in memory, and a refusal that names the field."""

    def __init__(self, request: Request, *, field: str, max_files: int, spool_bytes: int) -> None:
        # The limit is kept here and not in the base class, whose refusal does not say which field it is about.
        super().__init__(
            request.headers,
            request.stream(),
            max_files=max_files + 1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        self.spool_max_size = spool_bytes
        self._field, self._limit, self._files = field, max_files, 0
        self.ended = False

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None:
            self._files += 1
            if self._files > self._limit:
                many = "1 file" if self._limit == 1 else f"{self._limit} files"
                raise InvalidRequest(f"At most {many} can be sent in one request.", field=self._field)

    def on_end(self) -> None:
        super().on_end()
        self.ended = True


@asynccontextmanager
async def read_form(request: Request, *, file_field: str, max_files: int, spool_bytes: int) -> AsyncIterator[Form]:
    """Parse the request's multipart body; its temporary files are gone when the block ends.

    Raises `InvalidRequest` for a body that is not multipart or has more than `max_files` files (as soon as the
    first one too many begins), and `OutOfSpace` when the temporary files do not fit on the disk.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest(f"A multipart/form-data body with the file field {file_field!r} is needed.", field="body")
    parser = _Parser(request, field=file_field, max_files=max_files, spool_bytes=spool_bytes)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The multipart body cannot be read: {error.message}", field="body") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("There is no room left for the upload's temporary files.", retry_after_s=60.0) from error
        raise
    try:
        # The base class takes a body that stops in the middle for a whole one, without its last file.
        if not parser.ended:
            raise InvalidRequest("The multipart body is cut short.", field="body")
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        yield Form(files, fields)
    finally:
        await form.close()
