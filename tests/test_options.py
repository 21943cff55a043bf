"""The constructor of both clients: defaults, combinations, refusals, hooks, closing.

Subject: `_constructor.py`, `_arguments.py`, `_checks.py`, `_cookies.py`.
"""

import inspect
import io
import math
import os
import pydoc
import re
import types
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx
import pytest
from conftest import FakeClock, Flavour
from streams import Unseekable, at
from wording import HTTPX, USER_AGENT

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient, RetryPolicy
from httpx_production._constructor import HTTPXOptions

CLASSES = (ProductionHTTPClient, AsyncProductionHTTPClient)
both = pytest.mark.parametrize("kind", CLASSES)
OK = httpx.MockTransport(lambda request: httpx.Response(200))

DEFAULTS = {
    "base_url": None,
    "connect_timeout": 5.0,
    "read_timeout": 10.0,
    "write_timeout": 5.0,
    "pool_timeout": 2.0,
    "request_timeout": None,
    "attempt_timeout": None,
    "total_timeout": None,
    "max_connections": 50,
    "max_keepalive_connections": 20,
    "keepalive_expiry": 30.0,
    "max_attempts": 5,
    "default_headers": None,
    "retry": None,
    "http2": True,
}
PHASES = ("connect_timeout", "read_timeout", "write_timeout", "pool_timeout")
LIMITS = ("max_connections", "max_keepalive_connections", "keepalive_expiry")


def make(kind: Any, **options: Any) -> Any:
    """A client that makes no connection."""
    return kind(**{"transport": OK, **options})


def phases(client: Any) -> tuple[float | None, ...]:
    timeout = client.timeout
    return timeout.connect, timeout.read, timeout.write, timeout.pool


# --- the signature --------------------------------------------------------------------------------


@both
def test_the_defaults_are_those_of_the_contract(kind: Any) -> None:
    """Every argument of our own, in order, keyword-only, with its real value."""
    parameters = list(inspect.signature(kind).parameters.values())
    assert {one.name: one.default for one in parameters[:-1]} == DEFAULTS
    assert [one.name for one in parameters[:-1]] == list(DEFAULTS)
    assert {one.kind for one in parameters[:-1]} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD


def test_both_signatures_are_one() -> None:
    """Written once, for the arguments and for building requests."""
    for name in ("__init__", "build_request", "pool_stats", "send"):
        sync, async_ = (inspect.signature(getattr(kind, name)) for kind in CLASSES)
        assert sync == async_
    assert ProductionHTTPClient.__init__ is AsyncProductionHTTPClient.__init__


@both
def test_help_shows_the_real_defaults(kind: Any) -> None:
    """What an editor shows, too: numbers, not a placeholder."""
    text = pydoc.plain(pydoc.render_doc(kind.__init__))
    for name, default in DEFAULTS.items():
        assert any(name in line and f" = {default}" in line for line in text.splitlines())
    for name in (*DEFAULTS, "httpx_options"):
        assert f"\n        {name}: " in text or f"    {name}: " in text


@both
def test_every_argument_of_httpx_is_accepted(kind: Any) -> None:
    """Ours and the typed pass-through together are httpx's, no more and no less."""
    theirs = set(inspect.signature(kind.__mro__[3].__init__).parameters) - {"self"}
    assert kind.__mro__[3] in (httpx.Client, httpx.AsyncClient)
    assert set(HTTPXOptions.__annotations__) | {"base_url", "http2"} == theirs


@both
def test_positional_and_unknown_arguments_are_refused(kind: Any) -> None:
    """A misspelt name must not become a silent default."""
    with pytest.raises(TypeError, match="positional"):
        kind("https://api.example.com")
    with pytest.raises(TypeError, match="unexpected keyword argument 'retries'"):
        kind(retries=3)


@both
def test_the_other_arguments_reach_httpx(kind: Any) -> None:
    """Untouched, and absent ones keep httpx's default."""
    client = make(
        kind, base_url="https://api.example.com/v1", params={"a": "1"}, cookies={"c": "2"},
        auth=("u", "p"), follow_redirects=True, max_redirects=3, trust_env=False,
        default_encoding="latin-1",
    )  # fmt: skip
    assert client.base_url == "https://api.example.com/v1/"
    assert client.params == httpx.QueryParams(a="1")
    assert dict(client.cookies) == {"c": "2"}
    assert isinstance(client.auth, httpx.BasicAuth)
    assert (client.follow_redirects, client.max_redirects, client.trust_env) == (True, 3, False)
    plain = make(kind)
    assert plain.base_url == ""
    assert (plain.follow_redirects, plain.max_redirects, plain.trust_env) == (False, 20, True)


@both
def test_a_client_is_an_httpx_client(kind: Any) -> None:
    """A subclass, so that whoever asks isinstance() is content."""
    parent = httpx.Client if kind is ProductionHTTPClient else httpx.AsyncClient
    assert isinstance(make(kind), parent)


# --- timeouts -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (5.0, 10.0, 5.0, 2.0)),
        ({"connect_timeout": 1}, (1.0, 10.0, 5.0, 2.0)),
        ({"pool_timeout": 0.5}, (5.0, 10.0, 5.0, 0.5)),
        ({"read_timeout": None}, (5.0, None, 5.0, 2.0)),
        ({"request_timeout": None}, (5.0, 10.0, 5.0, 2.0)),
        ({"request_timeout": 3}, (3.0, 3.0, 3.0, 3.0)),
        ({"request_timeout": 3, "read_timeout": 60}, (3.0, 60.0, 3.0, 3.0)),
        ({"request_timeout": 3, "read_timeout": 10.0}, (3.0, 10.0, 3.0, 3.0)),
        ({"request_timeout": 3, "read_timeout": None}, (3.0, None, 3.0, 3.0)),
        ({"request_timeout": 3, **dict.fromkeys(PHASES, 1)}, (1.0, 1.0, 1.0, 1.0)),
        ({"timeout": 7}, (7, 7, 7, 7)),
        ({"timeout": None}, (None, None, None, None)),
        ({"timeout": (1, 2, 3, 4)}, (1, 2, 3, 4)),
        ({"timeout": httpx.Timeout(9, connect=1)}, (1, 9, 9, 9)),
        ({"timeout": 7, "request_timeout": None}, (7, 7, 7, 7)),
    ],
)
def test_timeouts_combine(
    kind: Any, options: dict[str, Any], expected: tuple[float | None, ...]
) -> None:
    """A phase given explicitly wins, also when it equals its default; timeout= replaces all."""
    assert phases(make(kind, **options)) == expected


@both
def test_phases_are_plain_floats(kind: Any) -> None:
    """httpx's timeout doesn't carry our marked defaults around."""
    client = make(kind, connect_timeout=1)
    assert {type(phase) for phase in phases(client)} == {float}
    assert client.timeout == httpx.Timeout(connect=1, read=10, write=5, pool=2)


@both
@pytest.mark.parametrize("name", [*PHASES, "request_timeout"])
@pytest.mark.parametrize("timeout", [7, None, httpx.Timeout(7)])
def test_timeout_and_its_parts_exclude_each_other(kind: Any, name: str, timeout: Any) -> None:
    """Nobody could say which was meant; the message names both."""
    with pytest.raises(TypeError) as caught:
        make(kind, timeout=timeout, **{name: 1})
    assert str(caught.value) == (
        f"timeout replaces {name} as a whole: give one or the other, not both"
    )


@both
def test_every_excluded_part_is_named(kind: Any) -> None:
    """All of them at once, not one error after the other."""
    with pytest.raises(
        TypeError, match="timeout replaces request_timeout, read_timeout as a whole"
    ):
        make(kind, timeout=7, request_timeout=1, read_timeout=None)
    with pytest.raises(TypeError, match="limits replaces max_connections, keepalive_expiry as a"):
        make(kind, limits=httpx.Limits(), max_connections=50, keepalive_expiry=None)


# --- limits ---------------------------------------------------------------------------------------


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What httpcore's pools are made with."""
    pools: list[dict[str, Any]] = []

    def record(name: str) -> None:
        original = getattr(httpcore, name).__init__

        def init(self: Any, *args: Any, **options: Any) -> None:
            pools.append(options)
            original(self, *args, **options)

        monkeypatch.setattr(getattr(httpcore, name), "__init__", init)

    record("ConnectionPool")
    record("AsyncConnectionPool")
    return pools


@both
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (50, 20, 30.0)),
        ({"max_connections": 7}, (7, 20, 30.0)),
        ({"max_connections": None}, (None, 20, 30.0)),
        ({"max_keepalive_connections": 0}, (50, 0, 30.0)),
        ({"max_keepalive_connections": None, "keepalive_expiry": 1}, (50, None, 1)),
        ({"keepalive_expiry": None}, (50, 20, None)),
        ({"limits": httpx.Limits(max_connections=3)}, (3, None, 5.0)),
    ],
)
@pytest.mark.parametrize("route", ["direct", "proxy"])
def test_limits_reach_the_pool(
    kind: Any, options: Any, expected: Any, route: str, pools: list[dict[str, Any]]
) -> None:
    """That of the default transport, and that of a proxy."""
    kind(trust_env=False, proxy="http://127.0.0.1:9" if route == "proxy" else None, **options)
    made = [one for one in pools if "max_connections" in one]
    assert made
    for pool in made:
        assert tuple(pool[name] for name in LIMITS) == expected


@both
@pytest.mark.parametrize("http2", [True, False])
def test_http2_reaches_the_pool(kind: Any, http2: bool, pools: list[dict[str, Any]]) -> None:
    """Offered by default, unlike in httpx."""
    kind(trust_env=False, **({} if http2 else {"http2": False}))
    assert next(one["http2"] for one in pools if "http2" in one) is http2


@both
@pytest.mark.parametrize("name", LIMITS)
def test_limits_and_its_parts_exclude_each_other(kind: Any, name: str) -> None:
    """As with timeouts, also for the value that is the default anyway."""
    for value in (DEFAULTS[name], None):
        with pytest.raises(TypeError) as caught:
            make(kind, limits=httpx.Limits(), **{name: value})
        assert str(caught.value) == (
            f"limits replaces {name} as a whole: give one or the other, not both"
        )


# --- bad values -----------------------------------------------------------------------------------

BAD_SECONDS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError), (-0.001, ValueError), (math.nan, ValueError), (math.inf, ValueError),
    (10**400, ValueError), ("5", TypeError), (b"5", TypeError), (True, TypeError),
    ([5], TypeError), (Decimal(5), TypeError), (httpx.Timeout(5), TypeError),
]  # fmt: skip
BAD: list[tuple[str, Any, type[Exception]]] = [
    *(
        (name, value, error)
        for name in (*PHASES, "request_timeout", "total_timeout", "keepalive_expiry")
        for value, error in BAD_SECONDS
    ),
    ("total_timeout", 0, ValueError),
    *(("max_connections", value, ValueError) for value in (0, -1)),
    ("max_keepalive_connections", -1, ValueError),
    *((name, v, TypeError) for name in LIMITS[:2] for v in (2.5, True, "5", math.nan, [5])),
    *(("max_attempts", value, ValueError) for value in (0, -1)),
    *(("max_attempts", value, TypeError) for value in (2.5, True, "5", None, math.nan)),
    *(("retry", value, TypeError) for value in (5, "default", {"max_attempts": 3}, RetryPolicy)),
]


@both
@pytest.mark.parametrize(
    ("name", "value", "error"), BAD, ids=[f"{name}-{value!r:.20}" for name, value, _ in BAD]
)
def test_bad_values_are_refused_by_name_and_value(
    kind: Any, name: str, value: Any, error: type[Exception]
) -> None:
    """In the constructor, before any connection, with a message a person can act on."""
    with pytest.raises(error) as caught:
        make(kind, **{name: value})
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{name} must be ")
    assert f", not {value!r}" in str(caught.value)


@both
@pytest.mark.parametrize("headers", [5, "X-Key: 1", [("X-Key",)], True])
def test_default_headers_that_are_none_are_refused_by_name(kind: Any, headers: Any) -> None:
    """The value is not shown: headers hold secrets."""
    with pytest.raises((TypeError, ValueError), match="default_headers") as caught:
        make(kind, default_headers=headers)
    assert "X-Key" not in str(caught.value)


@both
def test_zero_seconds_are_a_timeout(kind: Any) -> None:
    """As in httpx: it fails at once, which is what was asked for."""
    assert phases(make(kind, **dict.fromkeys(PHASES, 0))) == (0, 0, 0, 0)


@both
def test_a_refused_argument_leaves_nothing_behind(kind: Any, pools: list[dict[str, Any]]) -> None:
    """No transport was made when the constructor says no."""
    with pytest.raises(ValueError, match="max_attempts"):
        kind(max_attempts=0)
    with pytest.raises(ValueError, match="unknown event hook"):
        kind(event_hooks={"retries": []})
    assert pools == []


# --- retry, max_attempts, total_timeout -----------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (5, None)),
        ({"max_attempts": 3}, (3, None)),
        ({"total_timeout": 9}, (5, 9)),
        ({"retry": RetryPolicy(max_attempts=2, total_timeout=4)}, (2, 4)),
        ({"retry": RetryPolicy(max_attempts=2), "max_attempts": 5}, (5, None)),
        ({"retry": RetryPolicy(max_attempts=2), "total_timeout": 9}, (2, 9)),
        ({"retry": RetryPolicy(total_timeout=4), "max_attempts": 3}, (3, 4)),
        ({"retry": RetryPolicy(total_timeout=4), "total_timeout": 9.5}, (5, 9.5)),
        ({"retry": RetryPolicy(total_timeout=4), "total_timeout": None}, (5, 4)),
    ],
)
def test_max_attempts_and_total_timeout_override_the_policy(
    kind: Any, options: dict[str, Any], expected: tuple[int, float | None]
) -> None:
    """Where they are given explicitly, be it with the value that is the default."""
    policy = make(kind, **options).retry
    assert (policy.max_attempts, policy.total_timeout) == expected


@both
def test_the_policy_s_other_fields_are_kept(kind: Any) -> None:
    """And the policy that was given stays as it was."""
    given = RetryPolicy(methods={"POST"}, max_retry_after=7)
    policy = make(kind, retry=given, max_attempts=2).retry
    assert (policy.methods, policy.max_retry_after, given.max_attempts) == ({"POST"}, 7, 5)
    assert make(kind).retry == RetryPolicy()
    assert make(kind, retry=given).retry == given


pytestmark = pytest.mark.anyio


async def test_retry_may_be_set_later(flavour: Flavour, clock: FakeClock) -> None:
    """`client.retry` is an attribute like httpx's own."""
    busy = httpx.MockTransport(lambda request: httpx.Response(503))
    client = flavour.client(transport=busy)
    client.retry = RetryPolicy(max_attempts=2)
    response = await flavour.run(client.get("http://x"))
    assert len(response.extensions["retries"]) == 1


@both
@pytest.mark.parametrize("policy", [5, None, {"max_attempts": 2}, RetryPolicy])
def test_what_is_no_policy_is_refused_where_it_is_set(kind: Any, policy: Any) -> None:
    """And the client keeps the one it has."""
    client = make(kind, max_attempts=3)
    with pytest.raises(TypeError, match=r"client\.retry must be a RetryPolicy, not ") as caught:
        client.retry = policy
    assert str(caught.value).endswith(repr(policy))
    assert client.retry == RetryPolicy(max_attempts=3)


@pytest.mark.parametrize("policy", [5, None, "no", [1], RetryPolicy])
async def test_a_policy_of_the_wrong_type_is_refused_at_once(flavour: Flavour, policy: Any) -> None:
    """By every way to send, and before anything is sent."""
    sent: list[httpx.Request] = []
    client = flavour.client(
        transport=httpx.MockTransport(lambda request: sent.append(request) or httpx.Response(200))  # type: ignore[func-returns-value]
    )
    extensions = {"retry": policy}

    async def stream() -> None:
        async with flavour.using(client.stream("GET", "http://x", extensions=extensions)):
            pass

    by_hand = httpx.Request("GET", "http://x", extensions=extensions)
    ways: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        (client.get, ("http://x",), {"extensions": extensions}),
        (client.request, ("PUT", "http://x"), {"content": b"x", "extensions": extensions}),
        (client.build_request, ("GET", "http://x"), {"extensions": extensions}),
        (client.send, (by_hand,), {}),
        (stream, (), {}),
    ]
    for way, args, kwargs in ways:
        exc = await flavour.outcome(way, *args, **kwargs)
        assert type(exc) is TypeError
        assert str(exc) == f"extensions['retry'] must be a RetryPolicy, not {policy!r}"
    assert sent == []


async def test_a_policy_per_request_does_not_leak_into_the_next(
    flavour: Flavour, clock: FakeClock
) -> None:
    """It changes one request."""
    client = flavour.client(
        transport=httpx.MockTransport(lambda request: httpx.Response(503)), max_attempts=3
    )
    retries = []
    for extensions in ({"retry": RetryPolicy(max_attempts=1)}, {}, None):
        response = await flavour.run(client.get("http://x", extensions=extensions))
        retries.append(len(response.extensions["retries"]))
    assert retries == [0, 2, 2]


async def test_a_request_keeps_nothing_of_an_earlier_call_s_deadline(flavour: Flavour) -> None:
    """After each call its extensions are the very ones that it had at first."""
    client = flavour.client(transport=OK, total_timeout=30)
    request = client.build_request("GET", "http://x", timeout=7)
    phases, extensions = request.extensions["timeout"], request.extensions
    await flavour.run(client.send(request, auth=("user", "password")))
    assert request.extensions is extensions
    assert request.extensions == {"timeout": phases}
    client.retry = RetryPolicy()
    await flavour.run(client.send(request))
    assert request.extensions["timeout"] == phases
    assert type(request.extensions["timeout"]) is dict


async def test_a_hand_built_request_gets_the_client_s_timeouts(flavour: Flavour) -> None:
    """In httpx it has none, and may hang for ever."""
    seen: list[httpx.Request] = []
    transport = httpx.MockTransport(lambda one: seen.append(one) or httpx.Response(200))  # type: ignore[func-returns-value]
    client = flavour.client(transport=transport, connect_timeout=3)
    request = httpx.Request("GET", "http://x")
    await flavour.run(client.send(request))
    assert seen[0].extensions["timeout"] == client.timeout.as_dict()
    assert request.extensions == {}


# --- headers --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "default",
    [
        {"X-Key": "low", "X-Own": "own"},
        {b"X-Key": b"low", b"X-Own": b"own"},
        [("X-Key", "low"), ("X-Own", "own")],
        httpx.Headers({"X-Key": "low", "X-Own": "own"}),
    ],
)
def test_default_headers_lie_under_headers(kind: Any, default: Any) -> None:
    """Over httpx's own, under the client's and a request's, whatever the spelling."""
    before = repr(default)
    client = make(kind, default_headers=default, headers={"x-key": "high"})
    assert client.headers["X-Key"] == "high"
    assert client.headers["X-Own"] == "own"
    assert client.headers["User-Agent"] == USER_AGENT
    request = client.build_request("GET", "http://x", headers={"X-OWN": "request"})
    assert request.headers.get_list("x-own") == ["request"]
    assert request.headers.get_list("x-key") == ["high"]
    assert repr(default) == before


@both
def test_default_headers_stand_alone(kind: Any) -> None:
    """Without headers=, and over httpx's User-Agent."""
    client = make(kind, default_headers={"User-Agent": "mine/1"})
    assert client.headers["user-agent"] == "mine/1"
    assert make(kind, headers=None, default_headers={}).headers == httpx.Client().headers


# --- building requests ----------------------------------------------------------------------------


def pipe() -> io.FileIO:
    """A pipe with four bytes in it, whose fstat() says 0."""
    reader, writer = os.pipe()
    os.write(writer, b"0123")
    os.close(writer)
    return io.FileIO(reader)


LENGTHS: list[tuple[dict[str, Callable[[], Any]], str | None]] = [
    ({"content": lambda: b"0123"}, "4"),
    ({"content": lambda: at(0)}, "10"),
    ({"content": lambda: at(4)}, "6"),
    ({"content": lambda: at(10)}, "0"),
    ({"content": lambda: at(12)}, "0"),
    ({"content": pipe}, None),
    ({"content": Unseekable}, None),
    ({"content": lambda: iter([b"x"])}, None),
    ({"content": lambda: [b"x"]}, None),
    ({"data": lambda: {"a": "b"}}, "3"),
    ({"json": lambda: {"a": 1}}, "7"),
    ({"data": lambda: {"a": "b"}, "files": lambda: {"f": Unseekable(b"x")}}, None),
    ({"files": lambda: iter([("f", b"x")])}, "180"),
]


@pytest.mark.parametrize(
    ("body", "length"),
    LENGTHS,
    ids=["-".join(body) + f"-{length}-{n}" for n, (body, length) in enumerate(LENGTHS)],
)
def test_the_announced_length_is_that_of_what_is_sent(
    body: dict[str, Callable[[], Any]], length: str | None
) -> None:
    """The rest of a file, not all of it; chunks for what has no end that could be known."""
    content = {name: make() for name, make in body.items()}
    request = make(ProductionHTTPClient).build_request("PUT", "http://x", **content)
    assert request.headers.get("Content-Length") == length
    assert request.headers.get("Transfer-Encoding") == (None if length else "chunked")
    if isinstance(content.get("content"), io.FileIO):
        content["content"].close()


@both
def test_a_content_length_of_the_caller_s_is_left_alone(kind: Any) -> None:
    """On the request, and among the client's headers."""
    for headers, default in (({"content-length": "3"}, {}), ({}, {"Content-Length": "3"})):
        client = make(kind, default_headers=default)
        request = client.build_request("PUT", "http://x", content=at(4), headers=headers)
        assert request.headers["Content-Length"] == "3"


def test_data_that_is_no_form_is_content() -> None:
    """httpx still takes `data=<file>`, with a warning; it is the same body."""
    with pytest.warns(DeprecationWarning, match="content="):
        request = make(ProductionHTTPClient).build_request("PUT", "http://x", data=at(4))
    assert request.headers["Content-Length"] == "6"
    assert request.stream.replayable


# --- event hooks ----------------------------------------------------------------------------------


def hook(*args: Any) -> None:
    """Do nothing."""


@both
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (None, {"request": [], "response": []}),
        ({}, {"request": [], "response": []}),
        ({"request": [hook]}, {"request": [hook], "response": []}),
        ({"response": [hook]}, {"request": [], "response": [hook]}),
        ({"retry": [hook]}, {"request": [], "response": [], "retry": [hook]}),
        ({"retry": (hook, hook)}, {"request": [], "response": [], "retry": [hook, hook]}),
        ({"retry": []}, {"request": [], "response": [], "retry": []}),
    ],
)
def test_event_hooks_read_back_as_they_were_set(kind: Any, given: Any, seen: Any) -> None:
    """The key "retry" is there only when it was set; so in the constructor, so later."""
    client = make(kind, event_hooks=given)
    assert client.event_hooks == seen
    client.event_hooks = {"retry": [hook, hook, hook]}
    client.event_hooks = given or {}
    assert client.event_hooks == seen


@both
def test_event_hooks_can_be_saved_and_restored(kind: Any) -> None:
    """The pattern of whoever needs quiet for a moment."""
    client = make(kind, event_hooks={"request": [hook], "retry": [hook]})
    saved = client.event_hooks
    client.event_hooks = {}
    assert client.event_hooks == {"request": [], "response": []}
    client.event_hooks = saved
    assert client.event_hooks == {"request": [hook], "response": [], "retry": [hook]}


@both
def test_event_hooks_are_a_live_dict(kind: Any) -> None:
    """Item assignment and append are httpx's documented way."""
    client = make(kind)
    client.event_hooks["retry"] = [hook]
    client.event_hooks["retry"].append(hook)
    client.event_hooks["request"].append(hook)
    assert client.event_hooks == {"request": [hook], "response": [], "retry": [hook, hook]}


@both
def test_the_caller_s_lists_are_copied(kind: Any) -> None:
    """As httpx does: what is appended to a list given once doesn't become a hook."""
    hooks: dict[str, list[Any]] = {"request": [], "response": [], "retry": []}
    client = make(kind, event_hooks=hooks)
    for name in hooks:
        hooks[name].append(hook)
    assert client.event_hooks == {"request": [], "response": [], "retry": []}


@both
@pytest.mark.parametrize("name", ["retries", "Retry", "requests", "", 5])
def test_unknown_event_hooks_are_refused_by_name(kind: Any, name: Any) -> None:
    """httpx drops them in silence, which costs users hours."""
    client = make(kind, event_hooks={"retry": [hook]})
    for attempt in (
        lambda: make(kind, event_hooks={name: [hook]}),
        lambda: setattr(client, "event_hooks", {"request": [], name: [hook]}),
    ):
        with pytest.raises(ValueError, match="unknown event hook") as caught:
            attempt()
        assert str(caught.value) == (f"unknown event hook {name!r}: use request, response or retry")
    assert client.event_hooks["retry"] == [hook]


# --- subclasses that know nothing of us -----------------------------------------------------------


@both
def test_a_client_of_two_libraries_is_refused(kind: Any) -> None:
    """authlib takes httpx2 where it is installed: one class would send by both, or neither."""

    class Base:
        __module__ = "httpy._client"

        def build_request(self) -> None: ...

    class Client(Base):
        __module__ = "httpy"

    said = f"Mixed would be a client of {HTTPX} and httpy at once: call httpx2.alias_httpx()"
    for bases in ((kind, Client), (Client, kind)):
        with pytest.raises(TypeError, match=re.escape(said)):
            type("Mixed", bases, {})


@both
def test_a_mixin_of_a_subclass_is_told_of_it(kind: Any) -> None:
    """With the class statement's arguments, as Python does it; one that nobody takes is refused."""
    told: list[Any] = []

    class Mixin:
        def __init_subclass__(cls, /, service: str = "", **options: Any) -> None:
            super().__init_subclass__(**options)
            told.append(service)

    types.new_class("Own", (kind, Mixin), {"service": "billing"})
    assert told == ["billing"]
    with pytest.raises(TypeError, match="takes no keyword arguments"):
        types.new_class("Own", (kind,), {"service": "billing"})


class DirectSync(ProductionHTTPClient):
    """As authlib does it: httpx's constructor, called by name."""

    def __init__(self, retry: RetryPolicy | None = None, **options: Any) -> None:
        if retry is not None:
            self.retry = retry
        httpx.Client.__init__(self, **options)


class DirectAsync(AsyncProductionHTTPClient):
    """The same for the async client."""

    def __init__(self, retry: RetryPolicy | None = None, **options: Any) -> None:
        if retry is not None:
            self.retry = retry
        httpx.AsyncClient.__init__(self, **options)


async def test_a_subclass_may_call_httpx_s_constructor_directly(
    flavour: Flavour, clock: FakeClock
) -> None:
    """The client retries all the same, and keeps what was set before."""
    busy = httpx.MockTransport(lambda request: httpx.Response(503))
    client = (DirectSync if flavour.sync else DirectAsync)(
        transport=busy, event_hooks={"request": [flavour.hook(hook)]}
    )
    response = await flavour.run(client.get("http://x"))
    assert len(response.extensions["retries"]) == 4
    assert client.retry == RetryPolicy()
    assert client.pool_stats().connections == 0
    client.event_hooks = {"retry": [flavour.hook(hook)]}
    assert await flavour.run(client.get("http://x")) is not response
    twice = RetryPolicy(max_attempts=2, total_timeout=600)
    client = type(client)(retry=twice, transport=busy)
    assert client.retry is twice
    assert len((await flavour.run(client.get("http://x"))).extensions["retries"]) == 1
    await flavour.close(client)


# --- closing --------------------------------------------------------------------------------------


class Closing(httpx.MockTransport):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("name", ["close", "aclose"])
async def test_both_ways_to_close(flavour: Flavour, name: str) -> None:
    """close() in both clients, awaited in the async one, where aclose() stays."""
    transport = Closing(lambda request: httpx.Response(200))
    client = flavour.client(transport=transport)
    await flavour.run(client.get("http://x"))
    await flavour.run(getattr(client, "close" if flavour.sync else name)())
    assert client.is_closed
    assert transport.closed == 1
    exc = await flavour.outcome(client.get, "http://x")
    assert type(exc) is RuntimeError
    await flavour.run(client.close())
    assert transport.closed == 1


async def test_a_client_is_a_context_manager(flavour: Flavour) -> None:
    """As httpx's: open inside, closed after."""
    transport = Closing(lambda request: httpx.Response(200))
    async with flavour.using(flavour.client(transport=transport)) as client:
        assert isinstance(client, CLASSES)
        assert (await flavour.run(client.get("http://x"))).status_code == 200
    assert (client.is_closed, transport.closed) == (True, 1)


@both
@pytest.mark.parametrize("name", ["request", "response", "retry"])
def test_hooks_are_given_as_a_list(kind: Any, name: str) -> None:
    """A bare function is refused by name, in the constructor and later."""
    with pytest.raises(TypeError, match=rf"event_hooks\['{name}'\] must be a list of functions"):
        make(kind, event_hooks={name: print})
    with pytest.raises(TypeError, match="must be a list of functions"):
        make(kind).event_hooks = {name: print}


@both
def test_a_cookie_jar_of_the_caller_s_keeps_its_policy(kind: Any) -> None:
    """Only the jars that httpx makes refuse what could not be sent back."""
    jar = CookieJar(policy := DefaultCookiePolicy())
    assert make(kind, cookies=jar).cookies.jar is jar
    assert jar._policy is policy
    assert make(kind, cookies={"a": "b"}).cookies["a"] == "b"


async def test_a_cookie_that_could_not_be_sent_back_is_not_taken(flavour: Flavour) -> None:
    """In httpx one cookie beyond ASCII makes every further request to the host fail."""
    headers = [(b"Set-Cookie", b"bad=\xff"), (b"Set-Cookie", b"good=1")]
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers))
    plain, client = flavour.plain(transport=transport), flavour.client(transport=transport)
    await flavour.run(plain.get("http://x"))
    assert isinstance(await flavour.outcome(plain.get, "http://x"), UnicodeEncodeError)
    for _ in range(2):
        response = await flavour.run(client.get("http://x"))
    assert response.request.headers["Cookie"] == "good=1"
    client.cookies = {"own": "1"}  # and also in a jar that is made later
    for _ in range(2):
        response = await flavour.run(client.get("http://x"))
    assert response.request.headers["Cookie"] == "own=1; good=1"


@pytest.mark.parametrize("name", ["Set-Cookie", "set-cookie2"])
async def test_cookies_are_taken_from_either_header(flavour: Flavour, name: str) -> None:
    """Also by a policy of the caller's that wants those of RFC 2965."""
    headers = {name: 'a="1"; Version=1; Path=/'}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers))
    for client in (flavour.plain(transport=transport), flavour.client(transport=transport)):
        client.cookies.jar.set_policy(DefaultCookiePolicy(rfc2965=True))
        await flavour.run(client.get("http://x.example"))
        assert client.cookies["a"].strip('"') == "1"


class AskedForAll(CookieJar):
    """A jar that wants to see each response."""

    asked = 0

    def extract_cookies(self, response: Any, request: Any) -> None:
        self.asked += 1
        super().extract_cookies(response, request)


class NoJar:
    """Keeps nothing."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass

    def add_cookie_header(self, request: Any) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())


class OwnCookies(httpx.Cookies):
    """The cookies of a class between ours and httpx's."""

    asked = 0

    def extract_cookies(self, response: httpx.Response) -> None:
        self.asked += 1


async def test_a_jar_of_the_caller_s_is_asked_as_ever(flavour: Flavour) -> None:
    """As often as in httpx: whether it was given, assigned, or put in place of another one."""

    async def asked(new: Any) -> tuple[int, ...]:
        given, assigned, put = jars = AskedForAll(), AskedForAll(), AskedForAll()
        client = new(transport=OK, cookies=given)
        await flavour.run(client.get("http://x.example"))
        client.cookies = assigned
        await flavour.run(client.get("http://x.example"))
        client.cookies.jar = put
        await flavour.run(client.get("http://x.example"))
        return tuple(jar.asked for jar in jars)

    assert await asked(flavour.client) == await asked(flavour.plain)


async def test_what_has_a_jar_s_methods_may_be_assigned(flavour: Flavour) -> None:
    """As in httpx, whose users switch cookies off so."""
    headers = {"Set-Cookie": "a=1"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers))
    client = flavour.client(transport=transport)
    client.cookies = NoJar()
    for _ in range(2):
        response = await flavour.run(client.get("http://x.example"))
    assert "Cookie" not in response.request.headers


@both
def test_cookies_of_a_class_in_between_are_its_own(kind: Any) -> None:
    """What its constructor puts into them stays, and so does a class of its own."""
    base: Any = httpx.Client if kind is ProductionHTTPClient else httpx.AsyncClient

    class Between(base):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.cookies.set("session", "1")
            self.own = OwnCookies(self.cookies)

        @property
        def cookies(self) -> Any:
            return getattr(self, "own", super().cookies)

    class Client(kind, Between):  # type: ignore[misc]
        pass

    client = Client(transport=OK)
    assert dict(client.cookies) == {"session": "1"}
    assert type(client.cookies) is OwnCookies


# --- mistakes answered well -----------------------------------------------------------------------


def made(kind: Any, *args: Any, **options: Any) -> str:
    """What the constructor says to a mistake."""
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(*args, **options)
    return f"{type(caught.value).__name__}: {caught.value}"


@both
def test_a_mistaken_argument_is_named_with_the_right_one(kind: Any) -> None:
    """By our class's name; a value that may be a secret is not shown."""
    name, wrong = kind.__name__, "got an unexpected keyword argument"
    for given, near in (("retries", "max_attempts"), ("max_retry", "max_attempts"),
                        ("timout", "timeout"), ("base_urls", "base_url"), ("policy", "retry"),
                        ("read", "read_timeout"), ("deadline", "total_timeout"),
                        ("hooks", "event_hooks")):  # fmt: skip
        said = made(kind, **{given: 3})
        assert said == f"TypeError: {name}() {wrong} {given!r}: did you mean {near!r}?"
    assert made(kind, zzz=1) == f"TypeError: {name}() {wrong} 'zzz'"
    for given, near in (("status_codes", "status_codes"), ("backof", "backoff")):
        said = made(kind, **{given: 3})
        meant = f"did you mean retry=RetryPolicy({near}=...)?"
        assert said == f"TypeError: {name}() {wrong} {given!r}: {meant}"
    said = made(kind, "https://api.example.com")
    assert said == f"TypeError: {name} takes no positional arguments: base_url=..."


@both
@pytest.mark.parametrize("base_url", ["api.example.com", "/v1", "https://", "user:secret@host"])
def test_a_base_url_without_scheme_or_host_is_refused(kind: Any, base_url: str) -> None:
    """No request could be sent to it."""
    said = made(kind, base_url=base_url)
    assert said.startswith("ValueError: base_url must have a scheme and a host, as in 'https://")
    assert "secret" not in said
    assert base_url in said or "@" in base_url
    assert kind(base_url="").base_url == kind(base_url=None).base_url == ""


@both
def test_limits_and_hooks_of_another_kind_are_refused(kind: Any) -> None:
    """Where httpx says that a number has no attribute, or that a function can't be iterated."""
    assert made(kind, limits=10) == "TypeError: limits must be an httpx.Limits, not 10"
    said = made(kind, event_hooks=print)
    assert said == f'TypeError: event_hooks must be {{"retry": [function]}}, say, not {print!r}'


@both
@pytest.mark.parametrize("name", ["headers", "default_headers"])
def test_a_header_value_of_the_wrong_type_is_named_by_its_key(kind: Any, name: str) -> None:
    """Never by its value."""
    for headers in ({"X-Key": 4711}, [("X-Key", 4711)]):
        said = made(kind, **{name: headers})
        assert said == f"TypeError: {name}['X-Key'] must be str or bytes, not int"
    assert kind(**{name: [("X-Key", "4711")]}).headers["X-Key"] == "4711"


@both
def test_a_request_s_header_of_the_wrong_type_is_named_too(kind: Any) -> None:
    """A number or None among many headers; what else is of a wrong type says so as ever."""
    client = make(kind)
    for headers in ({"X-A": "a", "X-Key": 4711}, [("X-Key", 4711)]):
        with pytest.raises(TypeError) as caught:
            client.build_request("GET", "http://x", headers=headers)
        assert str(caught.value) == "headers['X-Key'] must be str or bytes, not int"
    with pytest.raises(TypeError, match="not JSON serializable"):
        client.build_request("POST", "http://x", headers={"X-A": "a"}, json={1, 2})


@both
def test_a_transport_of_the_other_client_is_refused(kind: Any) -> None:
    """Where it is given, not by the first request."""
    sync = issubclass(kind, httpx.Client)
    other = httpx.AsyncHTTPTransport() if sync else httpx.HTTPTransport()
    right = "BaseTransport" if sync else "AsyncBaseTransport"
    end = f"must be an {HTTPX}.{right} in this client, not {HTTPX}.{type(other).__name__}"
    assert made(kind, transport=other) == f"TypeError: transport {end}"
    assert made(kind, mounts={"all://": other}) == f"TypeError: mounts['all://'] {end}"


@both
@pytest.mark.parametrize("base", ["BaseTransport", "AsyncBaseTransport"])
def test_a_transport_of_another_library_is_refused(kind: Any, base: str) -> None:
    """httpx's and httpx2's wait for streams of their own: a bare AssertionError when they send."""
    theirs = type(base, (), {"__module__": "httpy"})
    other = type("HTTPTransport", (theirs,), {"__module__": "httpy"})()
    right = "BaseTransport" if issubclass(kind, httpx.Client) else "AsyncBaseTransport"
    end = f"must be an {HTTPX}.{right} in this client, not httpy.HTTPTransport"
    assert made(kind, transport=other) == f"TypeError: transport {end}"
    assert made(kind, mounts={"all://": other}) == f"TypeError: mounts['all://'] {end}"
    bridge = type("Bridge", (theirs, httpx.BaseTransport, httpx.AsyncBaseTransport), {})()
    for welcome in (bridge, types.SimpleNamespace()):  # httpx asks for no base
        assert kind(transport=welcome)._transport is welcome


class OtherTimeout:
    """As httpx2's to httpx, and httpx's to httpx2."""

    connect = read = write = pool = 5

    def __repr__(self) -> str:
        return "Timeout(timeout=5)"


@both
@pytest.mark.parametrize("timeout", [OtherTimeout(), "5", {"read": 5}, 5j, (5,), Decimal(5)])
def test_what_is_no_timeout_is_refused(kind: Any, timeout: Any) -> None:
    """httpx finds out when it connects, and its error names no argument."""
    said = f"must be seconds, None or an {HTTPX}.Timeout, not {timeout!r} of {type(timeout)}"
    assert made(kind, timeout=timeout) == f"TypeError: timeout {said}"


async def test_a_request_s_timeout_is_checked_too(flavour: Flavour) -> None:
    """Before it is sent: -1 would be a timeout of each attempt."""
    client = flavour.client(transport=OK)
    for timeout, error in ((OtherTimeout(), TypeError), (-1, ValueError), (math.nan, ValueError)):
        exc = await flavour.outcome(client.get, "http://x", timeout=timeout)
        assert type(exc) is error
        assert "timeout must be" in str(exc)
    for timeout in (None, 5, (1, 2, 3, 4), httpx.Timeout(5), httpx.USE_CLIENT_DEFAULT):
        assert (await flavour.run(client.get("http://x", timeout=timeout))).status_code == 200


@both
@pytest.mark.parametrize("timeout", [-1, math.nan, (5, -0.1, 5, 5), httpx.Timeout(5, pool=-1)])
def test_a_timeout_below_zero_is_refused(kind: Any, timeout: Any) -> None:
    """It would be tried, and tried again."""
    said = f"ValueError: timeout must be at least 0 seconds, not {timeout!r}"
    assert made(kind, timeout=timeout) == said


@both
@pytest.mark.parametrize("timeout", [None, 0, 1e9, math.inf, True, Fraction(1, 2), (1, 2, 3, 4)])
def test_a_timeout_that_httpx_can_use_is_left_alone(kind: Any, timeout: Any) -> None:
    """Longer ones than our own arguments may be, too."""
    assert make(kind, timeout=timeout).timeout == httpx.Timeout(timeout)


@both
@pytest.mark.parametrize("cookies", [types.SimpleNamespace(jar=()), "token=secret", 5])
def test_what_is_no_cookies_is_refused(kind: Any, cookies: Any) -> None:
    """httpx takes whatever it doesn't know for a jar, and fails when it sends."""
    said = f"TypeError: cookies must be what httpx takes, not {type(cookies)}"
    assert made(kind, cookies=cookies) == said


@both
def test_a_subclass_may_take_positional_arguments(kind: Any) -> None:
    """It has a constructor of its own."""

    class Own(kind):  # type: ignore[misc]
        def __init__(self, token: str) -> None:
            super().__init__(headers={"Authorization": token})

    assert Own("t").headers["Authorization"] == "t"


@pytest.mark.parametrize("kind", [ProductionHTTPClient, AsyncProductionHTTPClient])
def test_a_class_in_between_has_arguments_of_its_own(kind: Any) -> None:
    """authlib's clients mix in so: what we don't know may be theirs, who hand on the rest."""
    base: Any = httpx.AsyncClient if issubclass(kind, httpx.AsyncClient) else httpx.Client

    class Between(base):  # type: ignore[misc]
        def __init__(self, *, client_id: str, **options: Any) -> None:
            super().__init__(**options)
            self.client_id = client_id

    class Mixed(kind, Between):  # type: ignore[misc]
        pass

    assert Mixed(client_id="x").client_id == "x"
    with pytest.raises(TypeError, match="timout"):
        Mixed(client_id="x", timout=5)
