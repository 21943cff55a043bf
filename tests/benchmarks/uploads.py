"""What `run.py` uploads: 8 MiB from memory, from a file, and in chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import anyio
from contenders import HTTPX

SIZE = 8 * 2**20  # bytes
CHUNK = 64 * 2**10

Content = Callable[[str], Any]  # makes the body of one request, by the contender's name


@dataclass(frozen=True)
class Upload:
    """The same bytes for both flavours."""

    label: str
    content: Content
    async_content: Content
    async_label: str = "the same, asyncio"


def chunks() -> Iterator[bytes]:
    for _ in range(SIZE // CHUNK):
        yield bytes(CHUNK)


async def async_chunks() -> AsyncIterator[bytes]:
    for chunk in chunks():
        yield chunk


async def pieces(file: Any) -> AsyncIterator[bytes]:
    """A file as httpx's async client takes it; read in a worker thread, as ours reads files."""
    while piece := await anyio.wrap_file(file).read(CHUNK):
        yield piece


@contextmanager
def uploads() -> Iterator[list[Upload]]:
    """All of them, while their file is open."""
    data = bytes(SIZE)
    with TemporaryFile() as file:
        file.write(data)

        def rewound(name: str) -> Any:
            file.seek(0)
            return file

        def readable(name: str) -> Any:
            return pieces(rewound(name)) if name == HTTPX.name else rewound(name)

        iterated = "the same, asyncio (httpx refuses files: an async iterator over it)"
        yield [
            Upload("8 MiB of bytes sent", lambda _: data, lambda _: data),
            Upload("a file of 8 MiB sent", rewound, readable, iterated),
            Upload("8 MiB sent in chunks of 64 KiB", lambda _: chunks(), lambda _: async_chunks()),
        ]
