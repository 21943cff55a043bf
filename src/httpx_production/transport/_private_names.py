"""The names of httpcore's, h11's and h2's that this package uses, and that a release may change.

They are looked for in a pool itself and in what it makes, not in version numbers: httpcore 1.0 has
them, and httpcore2 from 2.1 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

POOL = (
    "create_connection _assign_requests_to_connections _close_connections _requests _http1 _http2 "
    "_optional_thread_lock _max_connections _max_keepalive_connections _keepalive_expiry"
)
CONNECTION = "_connection _http1 _http2 _ssl_context _origin|_remote_origin"
HTTP11 = "_network_stream _h11_state is_idle has_expired"
H11 = "_writer trailing_data"
HTTP2 = "_network_stream _origin"
H2 = "_receive_goaway_frame _receive_data_frame _data_to_send incoming_buffer"

_known: dict[type, str] = {}


def missing_names(pool: Any) -> str:
    """Name what an unused pool lacks, or what happened when it was looked for; "" if nothing."""
    kind: type = pool.__class__
    if kind not in _known:
        _known[kind] = _look(pool)
    return _known[kind]


def _look(pool: Any) -> str:
    missing: list[str] = []
    try:
        for thing, names in names_needed(pool):
            kind = thing if isinstance(thing, type) else type(thing)
            for name in names.split():
                if not any(hasattr(thing, one) for one in name.split("|")):
                    missing.append(f"{kind.__name__}.{name}")
    except Exception as exc:  # something is gone, or is made in another way
        missing.append(str(exc))
    return ", ".join(missing)


def names_needed(pool: Any) -> Iterator[tuple[Any, str]]:
    """Yield the pool, and what it and h2 make, each with the names that it must have."""
    core: Any = import_module("httpcore")
    flavour = "Async" if hasattr(pool, "handle_async_request") else ""
    handle = "handle_async_request" if flavour else "handle_request"
    if not isinstance(pool, getattr(core, f"{flavour}ConnectionPool")):  # httpx2 2.9.0's alias
        raise TypeError(f"httpx's pool is {type(pool).__module__}'s, not {core.__name__}'s")
    yield pool, f"{POOL} {handle}"
    origin = core.Origin(b"https", b"x", 443)
    for to in origin, core.Origin(b"http", b"x", 80):
        made = pool.create_connection(to)  # over a proxy: one in another
        yield made, f"_connection {handle}"
        yield made if hasattr(made, "_http2") else made._connection, CONNECTION
        yield made if hasattr(made, "_network_backend") else made._connection, "_network_backend"
    yield getattr(core, f"{flavour}HTTP11Connection")(origin, None), f"{HTTP11} {handle}"
    yield getattr(core, f"{flavour}HTTP2Connection")(origin, None), HTTP2
    yield import_module("httpcore._synchronization").Lock, "__enter__"
    yield import_module("httpcore._trace").Trace, "__enter__ __aenter__"
    yield import_module("h11").Connection(import_module("h11").CLIENT), H11
    yield import_module("h2.connection").H2Connection(), H2
    yield import_module("h2.frame_buffer").FrameBuffer(), "_data|data __next__"
