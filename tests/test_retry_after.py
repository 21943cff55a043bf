"""Retry-After as servers send it: delay-seconds, the three forms of an HTTP-date, and nonsense.

Subject: `retry.py`.
"""

import math
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpx_production import RetryPolicy, parse_retry_after

NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def imf(date: datetime) -> str:
    return format_datetime(date, usegmt=True)


def rfc850(date: datetime) -> str:
    month = MONTHS[date.month - 1]
    return f"{DAYS[date.weekday()]}, {date:%d}-{month}-{date.year % 100:02} {date:%H:%M:%S} GMT"


def asctime(date: datetime) -> str:
    day, month = DAYS[date.weekday()][:3], MONTHS[date.month - 1]
    return f"{day} {month} {date.day:2} {date:%H:%M:%S} {date.year:04}"


# --- delay-seconds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("007", 7.0),
        (" 120\t", 120.0),
        ("31536000000", 31536000000.0),
        ("9" * 5000, sys.float_info.max),
        ("0" * 5000 + "1", 1.0),
        ("2.5", 2.5),
        ("0.000", 0.0),
        (" 3.0\t", 3.0),
        ("1761031680.5", 1761031680.5),
        ("9" * 5000 + ".5", sys.float_info.max),
        ("0." + "9" * 5000, 1.0),
    ],
)
def test_ascii_digits_are_seconds(value: str, delay: float) -> None:
    """RFC 9110 section 10.2.3, and a fraction, since to drop it would be earlier than asked."""
    assert parse_retry_after(value) == delay


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("3, 3", 3.0),
        ("3,3", 3.0),
        ("3, 120", 120.0),
        ("120 \t,\t 3", 120.0),
        ("2.5, 2", 2.5),
        ("0, 0", 0.0),
        (", 3,, ", 3.0),
        ("3, soon", 3.0),
        ("-5, 3", 3.0),
        ("1, " * 500 + "2", 2.0),
        ("5, Wed, 21 Oct 2026 07:30:00 GMT", 120.0),
        ("Wed, 21 Oct 2026 07:30:00 GMT, 500", 500.0),
        ("Wed, 21 Oct 2026 07:30:00 GMT, Wed, 21 Oct 2026 07:31:00 GMT", 180.0),
        ("Wednesday, 21-Oct-26 07:31:00 GMT, Wed Oct 21 07:30:00 2026", 180.0),
        ("Wed Oct 21 07:30:00 2026, Wed Oct 21 07:30:00 2026", 120.0),
        ("5, Thu, 01 Jan 1970 00:00:00 GMT", 5.0),
    ],
)
def test_of_several_values_the_longest_counts(value: str, delay: float) -> None:
    """A header that was sent twice arrives joined by commas; never earlier than any of it asks."""
    assert parse_retry_after(value, now=NOW) == delay


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "\t", "-5", "+5", "- 5", "1e3", "1.", ".5", "1.5.2", "-1.5", "1_000",
        "0x10", "5s", "5 s", "1 2",
        "inf", "Infinity", "nan", "NaN", "None", "true", "now", "tomorrow", "PT5S", "00:05",
        ",", ", ,", "soon, later", "-5, 1e3", "120;120",
        "\u0661", "\u00b2", "\uff11\uff12", "\u0967", "\u2460", "5\n", "\n5",
        "5\x00", "\u00a05", "\u20035", "\ud800", "\U0001d7d8", "2026-10-21", "2026-10-21T07:28:00Z",
        "\u0661.5", "1.\u0665", "1\u066b5",
    ],
)  # fmt: skip
def test_what_is_no_delay_and_no_date_is_none(value: str) -> None:
    """Signs, exponents, units and other scripts' digits match no grammar."""
    assert parse_retry_after(value) is None


@pytest.mark.parametrize("value", [None, b"120", 120, 1.5, True, ["120"], object(), NOW])
def test_what_is_no_text_is_none(value: Any) -> None:
    """A value of the wrong type never raises."""
    assert parse_retry_after(value) is None
    assert parse_retry_after(value, now=NOW) is None


@given(st.integers(min_value=0, max_value=10**320))
def test_any_number_of_digits_is_its_number(number: int) -> None:
    """Digits are read as they stand, without an overflow at any length."""
    try:
        expected = float(number)
    except OverflowError:
        expected = sys.float_info.max
    assert parse_retry_after(str(number)) == expected


@pytest.mark.time_limit(60.0)  # hypothesis makes its table of characters
@given(st.one_of(st.text(), st.text("0123456789 ,:-+.eGMTadn\u0661\u00b2\uff11"), st.characters()))
def test_any_text_is_none_or_finite_seconds(value: str) -> None:
    """Never raises, never negative, never infinite, never NaN."""
    assert_none_or_finite(parse_retry_after(value))


def assert_none_or_finite(delay: float | None) -> None:
    assert delay is None or (isinstance(delay, float) and 0 <= delay < math.inf)


# --- HTTP-dates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Wed, 21 Oct 2026 07:30:00 GMT",
        "Wednesday, 21-Oct-26 07:30:00 GMT",
        "Wed Oct 21 07:30:00 2026",
        "  Wed, 21 Oct 2026 07:30:00 GMT\t",
        "Mon, 21 Oct 2026 07:30:00 GMT",
        "Sunday, 21-Oct-26 07:30:00 GMT",
        "Sun Oct 21 07:30:00 2026",
    ],
    ids=["IMF-fixdate", "RFC 850", "asctime", "padded", *("wrong weekday",) * 3],
)
def test_a_date_in_any_form_counts_from_now(value: str) -> None:
    """RFC 9110 section 5.6.7: all three forms are accepted; the weekday moves nothing."""
    assert parse_retry_after(value, now=NOW) == 120.0


@pytest.mark.parametrize(
    ("value", "day"),
    [
        ("Mon Nov  2 07:28:00 2026", 2),
        ("Mon Nov 02 07:28:00 2026", 2),
        ("Thu Nov 12 07:28:00 2026", 12),
    ],
)
def test_asctime_pads_its_day_with_a_space(value: str, day: int) -> None:
    """A one-digit day is ` 2`; a zero in its place does no harm."""
    assert parse_retry_after(value, now=NOW) == (day + 31 - 21) * 86_400


@pytest.mark.parametrize(
    "value",
    [
        "Wed, 21 oct 2026 07:30:00 GMT",
        "wed, 21 Oct 2026 07:30:00 GMT",
        "WED, 21 OCT 2026 07:30:00 GMT",
        "Wed, 21 Oct 2026 07:30:00 gmt",
        "Wed, 21 Oct 2026 07:30:00 UTC",
        "Wed, 21 Oct 2026 07:30:00 +0000",
        "Wed, 21 Oct 2026 07:30:00",
        "Wed, 21 Oct 2026 07:30 GMT",
        "Wed, 1 Oct 2026 07:30:00 GMT",
        "Wed,21 Oct 2026 07:30:00 GMT",
        "21 Oct 2026 07:30:00 GMT",
        "Wed, 21 Oct 12026 07:30:00 GMT",
        "Wed, 21 Oct 26 07:30:00 GMT",
        "Wed, 30 Feb 2026 07:30:00 GMT",
        "Wed, 29 Feb 2026 07:30:00 GMT",
        "Wed, 00 Oct 2026 07:30:00 GMT",
        "Wed, 31 Nov 2026 07:30:00 GMT",
        "Wed, 21 Oct 0000 07:30:00 GMT",
        "Wed, 21 Oct 2026 24:00:00 GMT",
        "Wed, 21 Oct 2026 07:60:00 GMT",
        "Wed, 21 Oct 2026 07:30:60 GMT",
        "Wed, 21 Oct 2026 07:30:00 GMT Wed, 21 Oct 2026 07:30:00 GMT",
        "Wed,, 21 Oct 2026 07:30:00 GMT",
        "Wed, 21 Oct 2026 07:30:00 GMT\n",
        "Wed, \u0662\u0661 Oct 2026 07:30:00 GMT",
        "Wed, 21-Oct-26 07:30:00 GMT",
        "Wednesday, 21-Oct-2026 07:30:00 GMT",
        "Wednesday, 30-Feb-26 07:30:00 GMT",
        "Wednesday, 21-Oct-26 07:30:60 GMT",
        "Wed Oct 21 07:30:00 GMT 2026",
        "Wed Oct  0 07:30:00 2026",
        "Wed Feb 30 07:30:00 2026",
        "Wed Oct 2 07:30:00 2026",
        "Wed Oct 21 07:30:60 2026",
    ],
)
def test_what_is_almost_a_date_is_none(value: str) -> None:
    """A strict reader: better the backoff than a date that was guessed."""
    assert parse_retry_after(value, now=NOW) is None


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:27:59 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251618660159 - 1),
    ],
)
def test_years_far_away_are_dates_all_the_same(value: str, delay: float) -> None:
    """The past and this moment are 0, the year 9999 is a large number."""
    expected = delay and datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    expected -= NOW.timestamp() if delay else 0
    assert parse_retry_after(value, now=NOW) == expected


DATES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(
    lambda date: date.replace(microsecond=0, tzinfo=UTC)
)


@given(date=DATES, now=DATES)
def test_imf_and_asctime_dates_come_back_as_they_were(date: datetime, now: datetime) -> None:
    """Any second of any year is read to the second, whatever the time now."""
    expected = max(0.0, (date - now).total_seconds())
    assert parse_retry_after(imf(date), now=now) == expected
    assert parse_retry_after(asctime(date), now=now) == expected


DAY, MONTH = st.sampled_from([*DAYS, *(day[:3] for day in DAYS)]), st.sampled_from(MONTHS)
TWO = st.integers(0, 99).map("{:02}".format)
YEAR = st.one_of(TWO, st.integers(0, 9999).map("{:04}".format))
CLOCK = st.tuples(TWO, TWO, TWO).map(":".join)
SHAPED = st.one_of(
    st.builds("{}, {} {} {} {} GMT".format, DAY, TWO, MONTH, YEAR, CLOCK),
    st.builds("{}, {}-{}-{} {} GMT".format, DAY, TWO, MONTH, YEAR, CLOCK),
    st.builds("{} {} {} {} {}".format, DAY, MONTH, TWO, CLOCK, YEAR),
    st.builds("{}.{}".format, st.integers(), st.integers()),
    st.text("0123456789.,-+e", max_size=9),
)
ANY_CLOCK = st.datetimes(
    timezones=st.one_of(
        st.none(),
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
        st.timezones(),
    )
)


@given(values=st.lists(SHAPED, min_size=1, max_size=4), now=ANY_CLOCK)
def test_whatever_looks_like_a_value_is_none_or_finite_by_any_clock(
    values: list[str], now: datetime
) -> None:
    """Never raises: no day that doesn't exist, and no clock at either end of time."""
    delays = [parse_retry_after(value, now=now) for value in values]
    for delay in delays:
        assert_none_or_finite(delay)
    listed = parse_retry_after(", ".join(values), now=now)
    assert_none_or_finite(listed)
    given = [delay for delay in delays if delay is not None]
    assert not given or (listed is not None and listed >= max(given))


@given(
    now=st.datetimes(datetime(100, 1, 1), datetime(9900, 1, 1)),
    ahead=st.timedeltas(timedelta(days=-49 * 365), timedelta(days=49 * 365)),
)
def test_rfc_850_dates_come_back_within_50_years(now: datetime, ahead: timedelta) -> None:
    """Two digits of a year are enough for any date less than 50 years from now."""
    now = now.replace(tzinfo=UTC, microsecond=0)
    date = now + timedelta(seconds=int(ahead.total_seconds()))
    assert parse_retry_after(rfc850(date), now=now) == max(0.0, (date - now).total_seconds())


@pytest.mark.parametrize(
    ("now", "value", "date"),
    [
        ("2026-10-21T07:28:00Z", "Wednesday, 21-Oct-76 07:28:00 GMT", "2076-10-21T07:28:00Z"),
        ("2026-10-21T07:28:00Z", "Wednesday, 21-Oct-76 07:28:01 GMT", None),
        ("2026-10-21T07:28:00Z", "Thursday, 31-Dec-76 23:59:59 GMT", None),
        ("2026-10-21T07:28:00Z", "Friday, 01-Jan-77 00:00:00 GMT", None),
        ("2026-10-21T07:28:00Z", "Tuesday, 20-Oct-76 07:28:01 GMT", "2076-10-20T07:28:01Z"),
        ("2026-10-21T07:28:00Z", "Sunday, 06-Nov-94 08:49:37 GMT", None),
        ("2049-12-31T23:59:59Z", "Saturday, 01-Jan-00 00:00:00 GMT", None),
        ("2049-12-31T23:59:59Z", "Friday, 31-Dec-99 23:59:59 GMT", "2099-12-31T23:59:59Z"),
        ("2050-01-01T00:00:00Z", "Saturday, 01-Jan-00 00:00:00 GMT", "2100-01-01T00:00:00Z"),
        ("2050-01-01T00:00:00Z", "Saturday, 01-Jan-00 00:00:01 GMT", None),
        ("2099-12-31T23:59:59Z", "Friday, 01-Jan-00 00:00:00 GMT", "2100-01-01T00:00:00Z"),
        ("2000-02-29T12:00:00Z", "Sunday, 28-Feb-50 12:00:00 GMT", "2050-02-28T12:00:00Z"),
        ("2000-02-29T12:00:00Z", "Tuesday, 01-Mar-50 00:00:00 GMT", None),
        # what counts is the year in UTC, not that of the zone in which `now` is given
        ("2027-01-01T00:30:00+14:00", "Thursday, 31-Dec-76 12:00:00 GMT", None),
        ("2026-12-31T23:30:00-12:00", "Friday, 01-Jan-77 11:00:00 GMT", "2077-01-01T11:00:00Z"),
        ("9999-06-01T00:00:00Z", "Tuesday, 01-Jan-30 00:00:00 GMT", None),
    ],
)
def test_two_digits_more_than_50_years_ahead_lie_in_the_past(
    now: str, value: str, date: str | None
) -> None:
    """RFC 9110 section 5.6.7, to the second, over the turn of centuries and time zones."""
    moment = datetime.fromisoformat(now)
    delay = parse_retry_after(value, now=moment)
    if date is None:
        assert not delay
    else:
        assert delay == (datetime.fromisoformat(date) - moment).total_seconds()


@pytest.mark.parametrize(
    "now",
    [
        NOW.replace(tzinfo=None),
        NOW.astimezone(timezone(timedelta(hours=9))),
        NOW.astimezone(timezone(timedelta(hours=-11, minutes=-30))),
    ],
    ids=["naive is UTC", "east", "west"],
)
def test_now_may_stand_in_any_zone(now: datetime) -> None:
    """A naive `now` is UTC, an aware one keeps its moment."""
    for form in (imf, rfc850, asctime):
        assert parse_retry_after(form(NOW + timedelta(hours=2)), now=now) == 7200.0


def test_a_date_counts_from_the_clock_when_nothing_else_is_said() -> None:
    """Without `now`, from the current time."""
    delay = parse_retry_after(imf(datetime.now(UTC) + timedelta(minutes=10)))
    assert delay is not None
    assert 590 < delay <= 600


@pytest.mark.parametrize("now", [datetime.max, datetime.min])
@pytest.mark.parametrize("offset", [-14, 0, 14])
def test_a_now_at_the_edge_of_time_does_not_raise(now: datetime, offset: int) -> None:
    """Nothing overflows, whatever a caller's clock says."""
    moment = now.replace(tzinfo=timezone(timedelta(hours=offset)))
    for value in ("Wed, 21 Oct 2026 07:30:00 GMT", "Wednesday, 21-Oct-26 07:30:00 GMT"):
        delay = parse_retry_after(value, now=moment)
        assert delay is None or 0 <= delay < math.inf


# --- as the policy reads a response ---------------------------------------------------------------


def delay_of(headers: dict[str, str], status: int = 503, **policy: Any) -> float:
    """What the policy would wait; the backoff is told by its 0.25 s."""
    response = httpx.Response(status, headers=headers)
    return RetryPolicy(backoff=lambda attempt: 0.25, **policy).delay(0, response)


def test_a_date_counts_from_the_response_s_own_date() -> None:
    """A clock that is years off, here or there, does no harm."""
    past = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    for then in (imf, rfc850, asctime):
        for date in (imf, asctime):
            headers = {"Retry-After": then(past + timedelta(seconds=30)), "Date": date(past)}
            assert delay_of(headers) == 30.0


@pytest.mark.parametrize("date", ["", "yesterday", "Wed, 99 Oct 2026 07:28:00 GMT"])
def test_a_date_counts_from_now_when_the_response_has_no_good_date(date: str) -> None:
    """A Date header that doesn't parse is as good as none."""
    headers = {"Retry-After": imf(datetime.now(UTC) + timedelta(minutes=2)), "Date": date}
    assert 100 < delay_of(headers) <= 120


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 418])
def test_retry_after_replaces_the_backoff_on_every_status(status: int) -> None:
    """Not on 429 and 503 alone: whoever asks for a wait is given it."""
    assert delay_of({"Retry-After": "7"}, status) == 7.0


@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({}, 0.25),
        ({"Retry-After": ""}, 0.25),
        ({"Retry-After": "soon"}, 0.25),
        ({"Retry-After": "0"}, 0.25),
        ({"Retry-After": "-5"}, 0.25),
        ({"Retry-After": "120, 120"}, 120.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "0, 0.0"}, 0.25),
        ({"Retry-After": "5, 301"}, math.inf),
        ({"Retry-After": "300.001"}, math.inf),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.25),
        ({"Retry-After": "300"}, 300.0),
        ({"Retry-After": "301"}, math.inf),
        ({"Retry-After": "9" * 5000}, math.inf),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After-Ms": "1500.5"}, 1.5005),
        ({"Retry-After-Ms": "1500", "Retry-After": "7"}, 1.5),
        ({"Retry-After-Ms": "300000"}, 300.0),
        ({"Retry-After-Ms": "300001"}, math.inf),
        ({"Retry-After-Ms": "9" * 5000}, math.inf),
        ({"Retry-After-Ms": "0"}, 0.25),
        ({"Retry-After-Ms": "0.0"}, 0.25),
        ({"Retry-After-Ms": "0", "Retry-After": "soon"}, 0.25),
        ({"Retry-After-Ms": "", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "-1500", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "+1500", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "1e3", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": ".5", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "nan", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "inf", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "1000, 2000", "Retry-After": "7"}, 2.0),
        ({"Retry-After-Ms": "1000, 1e9", "Retry-After": "7"}, 1.0),
        ({"Retry-After-Ms": "Wed Oct 21 07:30:00 2026", "Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "\u00b2", "Retry-After": "7"}, 7.0),
    ],
)
def test_the_wait_that_headers_ask_for(headers: dict[str, str], delay: float) -> None:
    """Milliseconds first; zero, past and malformed mean the backoff; too long means not at all."""
    raw = {name: value.encode() for name, value in headers.items()}
    assert delay_of(raw) == delay  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values", "delay"),
    [
        ("Retry-After", ["3", "3"], 3.0),
        ("Retry-After", ["3", "7.5", "1"], 7.5),
        ("Retry-After", [imf(NOW + timedelta(seconds=9)), "3"], 9.0),
        ("Retry-After", [rfc850(NOW), asctime(NOW + timedelta(seconds=9))], 9.0),
        ("Retry-After-Ms", ["1500", "1500"], 1.5),
    ],
)
def test_a_repeated_header_line_asks_for_the_longest_wait(
    name: str, values: list[str], delay: float
) -> None:
    """A proxy that adds its own line to the server's makes none of them void."""
    headers = [("Date", imf(NOW)), *((name, value) for value in values)]
    response = httpx.Response(503, headers=headers)
    assert RetryPolicy(backoff=lambda attempt: 0.25).delay(0, response) == delay


# --- pendulum is imported when the first date arrives ---------------------------------------------

IMPORTED = """
import sys, httpx
from httpx_production import RetryPolicy, parse_retry_after
for headers in {0!r}:
    RetryPolicy(backoff=lambda attempt: 0.25).delay(0, httpx.Response(503, headers=headers))
print("pendulum" in sys.modules)
"""


@pytest.mark.parametrize(
    ("headers", "imported"),
    [
        ([{}, {"Retry-After": "5"}, {"Retry-After": "soon"}, {"Retry-After-Ms": "5"}], False),
        # every server sends a Date; it matters only beside a Retry-After that is a date, too
        ([{"Date": imf(NOW)}, {"Retry-After": "5", "Date": imf(NOW)}], False),
        ([{"Retry-After": "soon", "Date": imf(NOW)}], False),
        ([{"Retry-After": imf(NOW)}], True),
    ],
    ids=["no date", "delay-seconds beside Date", "nonsense beside Date", "a date"],
)
def test_pendulum_is_imported_when_a_date_arrives(
    headers: list[dict[str, str]], imported: bool
) -> None:
    """It costs half as much to import as httpx, and most programs never see a date."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORTED.format(headers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    assert done.stdout.strip() == str(imported)


# --- when a test has replaced the clock -----------------------------------------------------------

# Each is a program of its own: what pendulum inherits from is settled once in a process.
FROZEN = """
from datetime import datetime
import freezegun, httpx
from httpx_production import RetryPolicy, parse_retry_after

DATE, LATER = "Thu, 01 Jan 2026 00:00:00 GMT", "Thursday, 01-Jan-26 00:00:30 GMT"
RESPONSE = httpx.Response(503, headers={"Date": DATE, "Retry-After": LATER})
def delay():
    return RetryPolicy().delay(0, RESPONSE)
"""
FREEZE = """
with freezegun.freeze_time("2026-01-01"):
    assert delay() == 30, delay()
    assert parse_retry_after(LATER) == 30
assert delay() == 30
assert parse_retry_after(LATER) is not None
"""
SANE = """
import pendulum
assert datetime in pendulum.DateTime.__bases__, pendulum.DateTime.__mro__
assert (pendulum.now() - pendulum.now()).total_seconds() < 1
"""
FREEZES_FIRST = f"""
with freezegun.freeze_time("2026-01-01"):
    import pendulum
{FREEZE}
"""
STAND_IN = """
import datetime as module
class Stopped(module.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, tzinfo=tz)
real, module.datetime = module.datetime, Stopped
assert delay() == 30
module.datetime = real
assert delay() == 30
"""
MOCKED = """
from unittest import mock
with mock.patch("datetime.datetime"):
    assert delay() == 30
assert delay() == 30
"""


@pytest.mark.parametrize(
    "program",
    [FREEZE + SANE, "delay()\n" + FREEZE + SANE, FREEZES_FIRST, STAND_IN + SANE, MOCKED + SANE],
    ids=["frozen", "frozen later", "pendulum imported frozen", "a class of its own", "a mock"],
)
def test_a_clock_that_a_test_has_replaced_breaks_nothing(program: str) -> None:
    """Dates are read meanwhile and afterwards, and pendulum stays whole for the rest of it."""
    command = [sys.executable, "-W", "ignore", "-c", FROZEN + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr


# --- whatever year it is, wherever the machine stands ---------------------------------------------


@pytest.mark.parametrize(
    ("today", "value", "year"),
    [
        (2029, "80", 1980),
        (2029, "79", 2079),
        (2029, "30", 2030),
        (2051, "99", 2099),
        (2051, "01", 2101),
        (2051, "02", 2002),
        (1999, "01", 2001),
    ],
)
def test_a_year_of_two_digits_lies_within_fifty_years(today: int, value: str, year: int) -> None:
    """Whatever year we have: RFC 9110 section 5.6.7."""
    now = datetime(today, 6, 1, tzinfo=UTC)
    seconds = parse_retry_after(f"Sunday, 01-Jun-{value} 00:00:00 GMT", now=now)
    assert seconds == max(0.0, (datetime(year, 6, 1, tzinfo=UTC) - now).total_seconds())


def test_a_naive_now_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would take it for local time."""
    monkeypatch.setenv("TZ", "XYZ-9")
    time.tzset()
    try:
        now = datetime(2026, 6, 1)
        assert parse_retry_after("Mon, 01 Jun 2026 00:02:00 GMT", now=now) == 120.0
    finally:
        monkeypatch.undo()
        time.tzset()
