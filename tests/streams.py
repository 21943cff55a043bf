"""Bodies of requests and responses: streams of one kind or both, files, and what is almost one."""

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx


class SyncOnly(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from (b"ab", b"c")


class AsyncOnly(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in (b"ab", b"c"):
            yield part


class Both(SyncOnly, AsyncOnly):
    pass


class Unseekable(io.BytesIO):
    """A file that can't go back, and whose length nobody can know: a pipe, a decompressor."""

    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation

    tell = seek


class Bare:
    """A file-like object with nothing but what the test gives it."""

    def __init__(self, **methods: Any) -> None:
        vars(self).update(methods)


def at(position: int) -> io.BytesIO:
    """A file of ten bytes, read up to a position."""
    file = io.BytesIO(b"0123456789")
    file.seek(position)
    return file
