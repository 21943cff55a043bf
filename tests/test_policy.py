"""RetryPolicy: what it accepts and refuses, and that it is a value to be shared.

Subject: `retry.py`.
"""

import copy
import dataclasses
import inspect
import math
import pickle
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import pytest
from conftest import FakeClock, Flavour
from servers import ScriptedServer, answer

import httpx_production
from httpx_production import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    FailedAttempt,
    RetryBudget,
    RetryPolicy,
    jittered_backoff,
    parse_retry_after,
)
from httpx_production.retry import read_retry_after


class Everything:
    """A container that isn't iterable."""

    def __contains__(self, status: object) -> bool:
        return True


# --- defaults -------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_contract() -> None:
    """Five attempts, no deadline, idempotent methods, the live tables."""
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.max_retry_after) == (5, 300.0)
    assert (policy.attempt_timeout, policy.total_timeout) == (None, None)
    assert policy.methods == {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"}
    assert policy.status_codes is RETRIABLE_STATUS_CODES
    assert policy.exceptions is HTTPX_EXCEPTIONS
    assert policy.backoff is jittered_backoff
    assert policy.retry_after is read_retry_after
    assert policy.retry_unsent is False
    assert (policy.should_retry, policy.budget) == (None, None)


def test_the_tables_hold_what_the_contract_says() -> None:
    """Seven statuses and nine exception types, each with a text."""
    assert sorted(RETRIABLE_STATUS_CODES) == [104, 408, 429, 500, 502, 503, 504]
    assert RETRIABLE_STATUS_CODES[104] == "Connection Reset"
    assert set(HTTPX_EXCEPTIONS) == {
        httpx.TimeoutException, httpx.NetworkError, httpx.ConnectError, httpx.ConnectTimeout,
        httpx.ReadTimeout, httpx.PoolTimeout, httpx.LocalProtocolError, httpx.RemoteProtocolError,
        httpx.ProxyError,
    }  # fmt: skip
    assert type(RETRIABLE_STATUS_CODES) is type(HTTPX_EXCEPTIONS) is dict
    assert all(isinstance(text, str) and text for text in RETRIABLE_STATUS_CODES.values())
    assert all(isinstance(text, str) and text for text in HTTPX_EXCEPTIONS.values())


def test_every_field_is_keyword_only() -> None:
    """A bare number would not say whether it counts attempts or seconds."""
    parameters = inspect.signature(RetryPolicy).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert [parameter.name for parameter in parameters] == [
        "max_attempts", "attempt_timeout", "total_timeout", "methods", "status_codes",
        "exceptions", "backoff", "retry_after", "max_retry_after", "retry_unsent", "should_retry",
        "budget",
    ]  # fmt: skip


# --- refusals -------------------------------------------------------------------------------------

BAD_SECONDS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError), (-0.001, ValueError), (math.nan, ValueError), (math.inf, ValueError),
    (-math.inf, ValueError), (10**400, ValueError), ("5", TypeError), (b"5", TypeError),
    (True, TypeError), (False, TypeError), ([5], TypeError), (5j, TypeError),
    (Decimal(5), TypeError), (Fraction(1, 2), TypeError), (httpx.Timeout(5), TypeError),
]  # fmt: skip

BAD: list[tuple[str, Any, type[Exception]]] = [
    *(("max_attempts", value, ValueError) for value in (0, -1, -(10**400))),
    *(("max_attempts", v, TypeError) for v in (2.5, 5.0, True, False, "5", None, math.nan, [5])),
    *(("attempt_timeout", value, error) for value, error in [*BAD_SECONDS, (0, ValueError)]),
    *(("total_timeout", value, error) for value, error in [*BAD_SECONDS, (0, ValueError)]),
    *(("max_retry_after", value, error) for value, error in [*BAD_SECONDS, (None, TypeError)]),
    *(("methods", v, TypeError) for v in ("GET", "", b"GET", None, 5, {"GET": 1, 5: 2}, [b"GET"])),
    *(("methods", value, TypeError) for value in ([None], object())),
    *(("status_codes", v, TypeError) for v in (503, "503", b"503", None, {"503"}, [503.0], [True])),
    *(("status_codes", value, TypeError) for value in ([None], iter([503]), object())),
    *(("exceptions", v, TypeError) for v in ("ReadTimeout", None, 5, httpx.ReadTimeout, object())),
    *(("exceptions", v, TypeError) for v in (["ReadTimeout"], [httpx.ReadTimeout("")], [int])),
    *(("exceptions", v, TypeError) for v in ([None], [KeyboardInterrupt], [BaseException])),
    *(("backoff", value, TypeError) for value in (None, 1.0, "exponential", [1, 2, 4])),
    *(("retry_after", value, TypeError) for value in (None, 1.0, "x-ratelimit-reset", ["a"])),
    *(("retry_unsent", value, TypeError) for value in (None, 1, 0, "yes", len)),
    *(("should_retry", value, TypeError) for value in (True, "yes", 5, [len])),
    *(("budget", value, TypeError) for value in (True, 10, "10", RetryBudget)),
]


def named(value: Any) -> list[str]:
    """What a message may show of a bad value: itself, or an item of it."""
    items = list(value) if isinstance(value, list | set | dict | bytes) else []
    return [repr(each) for each in [value, *items]]


@pytest.mark.parametrize(
    ("name", "value", "error"), BAD, ids=[f"{name}-{value!r:.20}" for name, value, _ in BAD]
)
def test_bad_values_are_refused_by_name_and_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    """In the constructor, before any connection, with a message a person can act on."""
    with pytest.raises(error) as caught:
        RetryPolicy(**{name: value})
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{name} must ")
    assert any(text in message for text in named(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0 (1 means: never retry)"),
        ({"max_attempts": 2.5}, "max_attempts must be a whole number, not 2.5"),
        ({"max_attempts": True}, "max_attempts must be a whole number, not True"),
        ({"total_timeout": "5"}, "total_timeout must be a number of seconds or None, not '5'"),
        (
            {"total_timeout": 0},
            (
                "total_timeout must be more than 0 and at most 2147483 seconds, not 0; "
                "None means: no limit"
            ),
        ),
        (
            {"max_retry_after": -1},
            "max_retry_after must be at least 0 and at most 2147483 seconds, not -1",
        ),
        ({"max_retry_after": None}, "max_retry_after must be a number of seconds, not None"),
        (
            {"methods": "GET"},
            """methods must be a collection such as {"GET", "PUT"}, not 'GET'""",
        ),
        ({"methods": [5]}, "methods must hold strings, not 5"),
        ({"status_codes": 503}, "status_codes must be a container such as {429, 503}, not 503"),
        ({"status_codes": {"503"}}, "status_codes must hold whole numbers, not '503'"),
        (
            {"exceptions": httpx.ReadTimeout},
            (
                "exceptions must be a collection such as [httpx.ReadTimeout], "
                f"not {httpx.ReadTimeout!r}"
            ),
        ),
        ({"exceptions": [int]}, "exceptions must hold exception types, not <class 'int'>"),
        ({"backoff": 1.0}, "backoff must be a function, not 1.0"),
        ({"retry_after": "retry-after"}, "retry_after must be a function, not 'retry-after'"),
        ({"retry_unsent": 1}, "retry_unsent must be True or False, not 1"),
        ({"should_retry": True}, "should_retry must be a function, not True"),
    ],
)
def test_messages_say_what_was_wrong_and_what_to_do(changes: Any, message: str) -> None:
    """The whole sentence, as a user reads it."""
    with pytest.raises((TypeError, ValueError)) as caught:
        RetryPolicy(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["attempt_timeout", "total_timeout", "max_retry_after"])
@pytest.mark.parametrize("value", [2_147_484, 1e300, pytest.param(10**400, id="huge")])
def test_more_seconds_than_a_socket_can_wait_are_refused_with_the_limit(
    name: str, value: float
) -> None:
    """24 days are finite, and so is a year: the message must say what is wrong with it."""
    with pytest.raises(ValueError, match=f"{name} must be .* at most 2147483 seconds, not"):
        RetryPolicy(**{name: value})  # type: ignore[arg-type]


def test_unknown_and_positional_arguments_are_refused() -> None:
    """A typing error must not become a silent default."""
    with pytest.raises(TypeError, match="max_attempt"):
        RetryPolicy(max_attempt=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        RetryPolicy(3)  # type: ignore[misc]
    with pytest.raises(TypeError, match="suspects"):
        RetryPolicy(suspects={503})  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RetryPolicy)])
def test_replace_checks_as_the_constructor_does(name: str) -> None:
    """`dataclasses.replace` is no way around the rules."""
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(RetryPolicy(), **{name: object()})


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"max_attempts": 1},
        {"max_attempts": 10**9},
        {"total_timeout": 0.001},
        {"attempt_timeout": 30},
        {"total_timeout": 30},
        {"attempt_timeout": 0.001},
        {"attempt_timeout": 60, "total_timeout": 30},
        {"max_retry_after": 0},
        {"max_retry_after": 2_147_483},
        {"methods": ()},
        {"methods": ["GET"]},
        {"methods": frozenset({"PURGE"})},
        {"methods": (name for name in ("GET", "POST"))},
        {"status_codes": range(500, 600)},
        {"status_codes": {503: "why"}},
        {"status_codes": ()},
        {"status_codes": Everything()},
        {"exceptions": ()},
        {"exceptions": {httpx.ReadError: "why"}},
        {"exceptions": {OSError, Exception}},
        {"backoff": lambda attempt: 0.0},
        {"retry_after": lambda response: None},
        {"retry_unsent": True},
        {"should_retry": lambda request, outcome: None},
        {"budget": RetryBudget()},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_sensible_values_are_accepted(changes: dict[str, Any]) -> None:
    """Any container, any iterable, any callable, whole numbers where seconds are meant."""
    RetryPolicy(**changes)


def test_methods_are_folded_to_upper_case() -> None:
    """httpx upper-cases a request's method, so the policy's are, too."""
    assert RetryPolicy(methods=["get", "Post"]).methods == frozenset({"GET", "POST"})


def test_an_iterator_of_exceptions_is_used_up_once() -> None:
    """A generator serves every decision, not the first alone."""
    policy = RetryPolicy(exceptions=(kind for kind in (httpx.ReadError, httpx.ReadTimeout)))
    for _ in range(3):
        assert policy.covers(httpx.ReadError(""))
        assert policy.covers(httpx.ReadTimeout(""))


def test_an_iterator_with_a_wrong_item_is_refused() -> None:
    """What an iterator holds is looked at in the constructor, too."""
    with pytest.raises(TypeError, match="exceptions must hold exception types, not 5"):
        RetryPolicy(exceptions=iter([httpx.ReadError, 5]))  # type: ignore[list-item]


@pytest.mark.parametrize("table", ["status_codes", "exceptions"])
def test_a_live_table_with_a_wrong_key_is_refused_by_the_next_constructor(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earliest moment is the next policy or client that is made."""
    live: dict[Any, str]
    live = RETRIABLE_STATUS_CODES if table == "status_codes" else HTTPX_EXCEPTIONS  # type: ignore[assignment]
    monkeypatch.setitem(live, "503", "a string")
    with pytest.raises(TypeError, match=f"{table} must hold .*, not '503'"):
        RetryPolicy()
    with pytest.raises(TypeError, match=f"{table} must hold .*, not '503'"):
        httpx_production.ProductionHTTPClient(transport=httpx.MockTransport(lambda request: None))  # type: ignore[arg-type,return-value]


# --- which requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ['"8e03978e"', "8e03978e", "0", "a b", "-", "''"])
def test_an_idempotency_key_makes_any_method_repeatable(key: str) -> None:
    """Whatever it says: its form is a matter between caller and server."""
    request = httpx.Request("POST", "http://x", headers={"Idempotency-Key": key})
    assert RetryPolicy().allows(request)


@pytest.mark.parametrize("key", ["", " ", "\t  ", '""', ' "" ', '"  "', ", ", '"", ""'])
def test_a_blank_idempotency_key_is_none(key: str) -> None:
    """No server can tell a repetition by it: an empty variable, or an empty string in quotes."""
    request = httpx.Request("POST", "http://x", headers={"Idempotency-Key": key})
    assert not RetryPolicy().allows(request)
    repeated = httpx.Request("POST", "http://x", headers=[("Idempotency-Key", key)] * 2)
    assert not RetryPolicy().allows(repeated)


@pytest.mark.parametrize("method", ["QUERY", "query"])
def test_query_may_be_repeated(method: str) -> None:
    """RFC 10008: safe and idempotent."""
    assert RetryPolicy().allows(httpx.Request(method, "http://x"))
    assert not RetryPolicy(methods={"GET"}).allows(httpx.Request(method, "http://x"))


# --- what a response asks for ---------------------------------------------------------------------


def wait(asked: Any, **headers: str) -> float:
    """What a policy waits whose own function says so; the backoff is told by its 0.25 s."""
    policy = RetryPolicy(backoff=lambda attempt: 0.25, retry_after=lambda response: asked)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return policy.delay(0, httpx.Response(503, headers=named))


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        (7, 7.0), (1.5, 1.5), (300, 300.0), (300.1, math.inf), (1e300, math.inf),
        (math.inf, math.inf), (None, 0.25), (0, 0.25), (0.0, 0.25), (-1, 0.25),
        (-math.inf, 0.25), (math.nan, 0.25), pytest.param(10**400, math.inf, id="huge"),
    ],
)  # fmt: skip
def test_a_policy_s_own_retry_after_says_how_long(asked: float | None, delay: float) -> None:
    """None, nothing and the past mean the backoff; too long means not at all."""
    assert wait(asked) == delay
    assert type(wait(asked)) is float


def test_a_policy_s_own_retry_after_replaces_the_headers() -> None:
    """It may ask the default one itself."""
    assert wait(2, Retry_After="7") == 2
    assert wait(None, Retry_After="7") == 0.25
    policy = RetryPolicy(retry_after=lambda response: 2 * (read_retry_after(response) or 0))
    assert policy.delay(0, httpx.Response(503, headers={"Retry-After": "7"})) == 14


@pytest.mark.parametrize("asked", ["7", b"7", True, False, [7], 7j, Decimal(7), timedelta(7)])
def test_a_retry_after_that_returns_no_number_is_an_error(asked: Any) -> None:
    """Named, with what it returned: a string would be waited for by nobody."""
    with pytest.raises(TypeError) as caught:
        wait(asked)
    message = f"retry_after(response) must return seconds or None, not {asked!r}"
    assert str(caught.value) == message


def test_an_exception_is_asked_for_nothing() -> None:
    """Only a response can say when to come back."""
    policy = RetryPolicy(backoff=lambda attempt: 0.25, retry_after=lambda response: 7)
    assert policy.delay(0, httpx.ReadTimeout("")) == 0.25


def rate_limit_reset(response: httpx.Response) -> float | None:
    """GitHub's way: the moment, in seconds since 1970, when requests count anew."""
    reset = response.headers.get("x-ratelimit-reset", "")
    if response.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
        return float(reset) - time.time()
    return read_retry_after(response)


# --- a value --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RetryPolicy)])
def test_a_policy_is_frozen(name: str) -> None:
    """It is shared between clients and threads, so nobody changes it."""
    policy = RetryPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(policy, name)


def test_policies_compare_and_hash_by_value() -> None:
    """A policy can be a key, default tables and lists included."""
    assert RetryPolicy() == RetryPolicy()
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    assert RetryPolicy(max_attempts=3) != RetryPolicy()
    assert RetryPolicy(methods=["GET"]) == RetryPolicy(methods={"get"})
    own = RetryPolicy(status_codes=[503], exceptions=[httpx.ReadError], methods=["GET"])
    assert {own: "own", RetryPolicy(): "default"}[own] == "own"
    budget = RetryBudget()
    assert hash(RetryPolicy(budget=budget)) == hash(RetryPolicy(budget=budget))
    assert RetryPolicy(budget=budget) != RetryPolicy(budget=RetryBudget())


def test_the_hash_does_not_follow_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is added to a table must not lose policies in dicts."""
    policy = RetryPolicy()
    before = hash(policy)
    monkeypatch.setitem(RETRIABLE_STATUS_CODES, 418, "I'm a teapot")
    assert hash(policy) == before


def test_replace_derives_a_policy_and_keeps_the_live_tables() -> None:
    """The documented way to change one field, which leaves the original alone."""
    policy = RetryPolicy(total_timeout=30, should_retry=lambda request, outcome: None)
    derived = dataclasses.replace(policy, max_attempts=2)
    assert (derived.max_attempts, derived.total_timeout, policy.max_attempts) == (2, 30, 5)
    assert derived.should_retry is policy.should_retry
    assert derived.status_codes is RETRIABLE_STATUS_CODES
    assert derived.exceptions is HTTPX_EXCEPTIONS


def pickled(policy: RetryPolicy) -> Any:
    return pickle.loads(pickle.dumps(policy))


def own_backoff(attempt: int) -> float:
    return 0.0


DUPLICATES: list[Callable[[RetryPolicy], RetryPolicy]] = [copy.copy, copy.deepcopy, pickled]
duplicates = pytest.mark.parametrize(
    "duplicate", DUPLICATES, ids=["copied", "deep-copied", "pickled"]
)


@duplicates
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_attempts": 3, "methods": ["GET"], "attempt_timeout": 2, "total_timeout": 9.5},
        {"status_codes": {503}, "exceptions": [httpx.ReadError], "max_retry_after": 0},
        {"status_codes": range(500, 600), "exceptions": (httpx.ReadError,)},
        {"backoff": own_backoff, "retry_after": parse_retry_after, "should_retry": own_backoff},
        {"retry_unsent": True},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_copy_is_equal(
    duplicate: Callable[[RetryPolicy], RetryPolicy], changes: dict[str, Any]
) -> None:
    """Policies travel to other processes, as settings do."""
    policy = RetryPolicy(**changes)
    for one in (policy, duplicate(policy)):
        assert duplicate(one) == policy
        assert hash(duplicate(one)) == hash(policy)


@duplicates
def test_a_copy_follows_the_live_tables(
    duplicate: Callable[[RetryPolicy], RetryPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They change every client that uses the default, a copied policy's and a used one's too."""
    used = RetryPolicy()
    assert 425 not in used.suspects
    made = [duplicate(used), duplicate(dataclasses.replace(duplicate(used), max_attempts=2))]
    monkeypatch.setitem(RETRIABLE_STATUS_CODES, 425, "Too Early")
    monkeypatch.setitem(HTTPX_EXCEPTIONS, KeyError, "an own one")
    for policy in made:
        assert policy.status_codes is RETRIABLE_STATUS_CODES
        assert policy.exceptions is HTTPX_EXCEPTIONS
        assert 425 in policy.suspects
        assert policy.covers(httpx.Response(425))
        assert policy.covers(KeyError())


def test_a_deep_copy_has_containers_of_its_own() -> None:
    """Neither a set of the caller's nor the copy's changes the other; a plain copy shares it."""
    statuses, kinds = {503}, [httpx.ReadError]
    policy = RetryPolicy(status_codes=statuses, exceptions=kinds)
    deep, shallow = copy.deepcopy(policy), copy.copy(policy)
    statuses.add(418)
    kinds.append(httpx.WriteError)
    for outcome in (httpx.Response(418), httpx.WriteError("")):
        assert (shallow.covers(outcome), deep.covers(outcome)) == (True, False)


class Application:
    """Holds what can't be copied, as applications do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def decide(self, request: httpx.Request, outcome: object) -> bool | None:
        return None


def test_functions_are_shared_by_copies() -> None:
    """A bound method would be copied with all that its object holds."""
    policy = RetryPolicy(should_retry=Application().decide)
    assert copy.deepcopy(policy).should_retry is copy.copy(policy).should_retry
    assert copy.deepcopy({"policies": [policy]})["policies"] == [policy]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, dataclasses.replace])
def test_a_copy_shares_the_budget(duplicate: Callable[[RetryPolicy], RetryPolicy]) -> None:
    """Two would allow twice as many retries."""
    policy = RetryPolicy(budget=RetryBudget(burst=1))
    assert duplicate(policy) == policy
    assert duplicate(policy).budget is policy.budget


def test_a_pickled_policy_has_a_budget_with_the_same_settings() -> None:
    """What was counted stays here; policies that share a budget still do over there."""
    policy = RetryPolicy(budget=RetryBudget(burst=3, ratio=0.5, window=9))
    other = dataclasses.replace(policy, max_attempts=2)
    there, too = pickle.loads(pickle.dumps([policy, other]))
    assert repr(there.budget) == "RetryBudget(burst=3, ratio=0.5, window=9)"
    assert there.budget is too.budget is not policy.budget


def test_a_policy_can_be_shown_as_a_dict() -> None:
    """Its arguments and nothing else, a budget among them."""
    budget = RetryBudget()
    shown = dataclasses.asdict(RetryPolicy(max_attempts=2, budget=budget))
    assert list(shown) == list(inspect.signature(RetryPolicy).parameters)
    assert (shown["max_attempts"], shown["budget"]) == (2, budget)


def test_repr_names_the_fields_and_nothing_else() -> None:
    """Every argument of the constructor, none of the inner workings."""
    text = repr(
        RetryPolicy(max_attempts=2, total_timeout=1.5, methods={"GET"}, budget=RetryBudget())
    )
    assert text.startswith("RetryPolicy(max_attempts=2, attempt_timeout=None, total_timeout=1.5, ")
    assert "budget=RetryBudget(burst=10, ratio=0.1, window=60.0)" in text
    assert "suspects" not in text
    assert "\n" not in text


def test_a_failed_attempt_is_a_frozen_record() -> None:
    """The hook's argument: keyword-only, no attribute to be set, no secret in its repr."""
    request = httpx.Request("GET", "https://user:pa55@example.com/?key=SECRET")
    failed = FailedAttempt(
        request=request, attempt=0, outcome=httpx.ReadTimeout("SECRET"), delay=0.9, reason="Why"
    )
    assert repr(failed) == str(failed) == "FailedAttempt(attempt=0, delay=0.9, reason='Why')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        failed.delay = 1.0  # type: ignore[misc]
    assert not hasattr(failed, "__dict__")  # thousands of them may be kept
    with pytest.raises(TypeError):
        FailedAttempt(request, 0, httpx.ReadTimeout(""), 0.9, "Why")  # type: ignore[misc]


# --- through the clients --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_recipe_for_another_header_waits_as_it_says(
    flavour: Flavour, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own way to say when to come back, and Retry-After where it says that."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    reset = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000042"}
    answers = iter([(403, reset), (429, {"Retry-After": "7"}), (429, {}), (200, {})])

    def respond(request: httpx.Request) -> httpx.Response:
        status, headers = next(answers)
        return httpx.Response(status, headers=headers)

    policy = RetryPolicy(
        status_codes={403, 429}, retry_after=rate_limit_reset, backoff=lambda attempt: 0.25
    )
    client = flavour.client(retry=policy, transport=httpx.MockTransport(respond))
    assert (await flavour.run(client.get("https://api.example.com"))).status_code == 200
    assert clock.delays == [42.0, 7.0, 0.25]


@pytest.mark.anyio
async def test_a_wish_in_a_body_can_be_read_where_there_is_a_should_retry(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Else retry_after is asked before the body: a mock, whose bodies are there, hides that."""
    busy = answer(429, b'{"retry_after": 7}')
    for should_retry in (None, lambda request, outcome: None):
        policy = RetryPolicy(
            retry_after=lambda response: response.json()["retry_after"], should_retry=should_retry
        )
        with ScriptedServer([busy]) as server:
            outcome = await flavour.outcome(flavour.client(retry=policy).get, server.url)
        if should_retry is None:
            assert isinstance(outcome, httpx.ResponseNotRead)
        else:
            assert (outcome.text, clock.delays) == ("ok", [7.0])


@pytest.mark.anyio
async def test_a_wish_of_a_policy_s_own_function_that_is_too_long_ends_the_call(
    flavour: Flavour, clock: FakeClock
) -> None:
    """Above max_retry_after, as with Retry-After: the response is returned at once."""
    policy = RetryPolicy(retry_after=lambda response: 301)
    transport = httpx.MockTransport(lambda request: httpx.Response(503))
    client = flavour.client(retry=policy, transport=transport)
    response = await flavour.run(client.get("https://api.example.com"))
    assert (response.status_code, response.extensions["retries"]) == (503, ())
    assert clock.delays == []


# --- what it is asked, and what it waits ----------------------------------------------------------


def test_every_status_is_shown_to_who_asks_for_all() -> None:
    """HTTP's largest, 999, too: some sites answer robots with it."""
    policy = RetryPolicy(should_retry=lambda request, outcome: None)
    assert all(status in policy.suspects for status in range(100, 1000))


@pytest.mark.parametrize("delay", [-0.5, -1e-9, -1, -math.inf, math.nan, 0, -0.0])
def test_a_backoff_below_zero_is_no_wait(delay: float) -> None:
    """However little it is below."""
    policy = RetryPolicy(backoff=lambda attempt: delay)
    assert policy.delay(0, httpx.ReadTimeout("")) == 0.0
