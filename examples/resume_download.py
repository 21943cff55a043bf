"""A large download that goes on where it broke off, unless the file has changed meanwhile.

Run it with `uv run examples/resume_download.py`. No network: the server is started right here; it
has 200 MB and drops the connection on the way. The client retries until the response has begun;
from then on bytes have been written, and what to do about them is this program's decision:
`Range` asks for the rest, `If-Range` with the ETag for the whole file if it is another one by now
(RFC 9110, sections 13.1.5 and 14.2).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from http.server import BaseHTTPRequestHandler
from time import perf_counter, sleep
from typing import BinaryIO

import httpx
from flaky_server import LoopbackServer

from httpx_production import ProductionHTTPClient, jittered_backoff

# --- the download ---------------------------------------------------------------------------------

FAILURES = 5  # in a row, without a byte: then it is given up


def download(client: httpx.Client, url: str, file: BinaryIO) -> list[int]:
    """Write what is at `url` into an empty file; returns where each part began."""
    parts: list[int] = []
    etag = ""
    failures = 0
    while True:
        headers = {"Accept-Encoding": "identity"}  # ranges count the bytes as they are sent
        if etag:
            headers |= {"Range": f"bytes={file.tell()}-", "If-Range": etag}
        begun = -1
        try:
            with client.stream("GET", url, headers=headers) as response:
                begun = start_of(response.raise_for_status())
                file.seek(begun)
                file.truncate()
                parts.append(begun)
                etag = strong_etag(response)
                for chunk in response.iter_raw():
                    file.write(chunk)
                return parts
        except httpx.TransportError:
            failures = 0 if -1 < begun < file.tell() else failures + 1
            if failures == FAILURES:
                raise
            if not etag:  # nothing tells one version from another: from the start
                file.seek(0)
            sleep(jittered_backoff(failures) / 5)  # a fifth, to save your time


def start_of(response: httpx.Response) -> int:
    """Where the response's bytes belong: at the start, but for a 206."""
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers["Content-Range"])
    assert found, response.headers["Content-Range"]
    return int(found[1])


def strong_etag(response: httpx.Response) -> str:
    """The ETag, if it promises the same bytes: a weak one (W/) promises the same meaning."""
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


# --- the server: 200 MB, and a connection that breaks ---------------------------------------------

MEGABYTE = 1_000_000
SIZE = 200 * MEGABYTE
BREAKS = (70 * MEGABYTE, 150 * MEGABYTE)  # each breaks one connection


class Files(LoopbackServer):
    """Has one file, in two versions; counts what it sends."""

    def __init__(self, changes: bool) -> None:
        super().__init__(FileHandler)
        self.changes, self.sent = changes, 0
        self.breaks = list(BREAKS)
        self.block = hashlib.sha256(b"1").digest() * (MEGABYTE // 32)
        self.version = 1

    def drop(self) -> None:
        """Be restarted: the first time with another version of the file, if it is to change."""
        del self.breaks[0]
        if self.changes and self.version == 1:
            self.version = 2
            self.block = hashlib.sha256(b"2").digest() * (MEGABYTE // 32)

    def digest(self) -> str:
        """The hash of the whole file."""
        whole = hashlib.sha256()
        for _ in range(SIZE // MEGABYTE):
            whole.update(self.block)
        return whole.hexdigest()


class FileHandler(BaseHTTPRequestHandler):
    """Answers GET, with Range and If-Range."""

    server: Files
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the file, or the rest of it, as far as the connection lasts."""
        etag = f'"v{self.server.version}"'
        start = 0
        if self.headers.get("If-Range") == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(SIZE - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        self.end_headers()
        end = next((one for one in self.server.breaks if one > start), SIZE)
        block = self.server.block
        while start < end:
            offset = start % MEGABYTE
            size = min(MEGABYTE - offset, end - start)
            self.wfile.write(block[offset : offset + size])
            start += size
            self.server.sent += size
        if end < SIZE:
            self.server.drop()
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


def run(title: str, *, changes: bool) -> None:
    """Download once, say how it went, and fail loudly when a byte is wrong."""
    with (
        Files(changes) as server,
        tempfile.TemporaryFile() as file,
        ProductionHTTPClient() as client,
    ):
        started = perf_counter()
        parts = download(client, f"{server.url}/film", file)
        seconds = perf_counter() - started
        size = file.tell()
        file.seek(0)
        same = hashlib.file_digest(file, "sha256").hexdigest() == server.digest()
        sent = server.sent
    begun = ", ".join(f"{part / MEGABYTE:.0f}" for part in parts)
    print(f"{title}: {size / MEGABYTE:.0f} MB in {seconds:.1f} s, the hash is right: {same}")
    print(f"  parts began at {begun} MB; the server sent {sent / MEGABYTE:.0f} MB in all\n")
    assert same
    assert size == SIZE


def main() -> None:
    """Once with a file that stays, once with one that changes during the download."""
    run("a file that stays", changes=False)
    run("a file that changes", changes=True)


if __name__ == "__main__":
    main()
