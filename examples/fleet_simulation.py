"""A fleet of clients against one server, through an outage and through an overload.

Run it with `uv run --group examples examples/fleet_simulation.py`. A seeded discrete-event
simulation: the time is simulated, but every limit, wait and budget is the library's own
RetryPolicy, jittered_backoff and RetryBudget. Prints a table and draws two SVG files.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

from httpx_production import RetryBudget, RetryPolicy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# --- the world: change it and see -----------------------------------------------------------------

CALLS: Final = 0.6  # a second, by each client, in normal times: 36 a minute
UTILISATION: Final = 0.7  # the share of the server's capacity that this needs
QUEUE: Final = 30.0  # seconds of work that may wait at the server; then it refuses connections
READ_TIMEOUT: Final = 10.0  # seconds until a client gives up an attempt: the library's default
TICK: Final = 0.01  # seconds: how finely time passes, and how long it takes to be refused

ORIGIN: Final = ("https", b"api.example.com")
REFUSED: Final = httpx.ConnectError("connection refused")
TIMED_OUT: Final = httpx.ReadTimeout("no answer in time")
COME_BACK: Final = httpx.Response(503, headers={"Retry-After": "1"})

Clock = Callable[[], float]


def full_jitter(attempt: int) -> float:
    """Wait anything between nothing and the whole backoff, as AWS recommends."""
    return random.uniform(0.0, min(60.0, 2.0**attempt))


#: What each client of the fleet does. A budget goes by the simulation's clock.
POLICIES: Final[dict[str, Callable[[Clock], RetryPolicy]]] = {
    "no retries": lambda clock: RetryPolicy(max_attempts=1),
    "immediate retries": lambda clock: RetryPolicy(backoff=lambda attempt: 0.0),
    "full jitter": lambda clock: RetryPolicy(backoff=full_jitter),
    "default": lambda clock: RetryPolicy(),
    "default + budget": lambda clock: RetryPolicy(budget=RetryBudget(clock=clock)),
}


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What goes wrong between `start` and `end`: no server, or too much to do. Times in seconds."""

    title: str
    start: float
    end: float
    watched_until: float
    down: bool = False
    demand: float = 1.0

    def lasts(self, now: float) -> bool:
        """Tell whether it goes on at this moment."""
        return self.start <= now < self.end


EPISODES: Final = {
    "outage": Episode(
        title="Outage: the server is down for 60 s", start=10, end=70, watched_until=100, down=True
    ),
    "overload": Episode(
        title="Overload: 2.5 times the calls for 30 s",
        start=10,
        end=40,
        watched_until=170,
        demand=2.5,
    ),
}

# --- the simulation -------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One client's attempt, number 0 the first of its call."""

    client: int
    number: int = 0
    token: Any = None  # what a budget gave for it


Due = dict[int, list[Attempt]]  # by tick


class Server:
    """Works through one queue, in order and at a steady pace.

    It can't see that a client has stopped waiting, so it works for those too: that is how an
    overload feeds on itself.
    """

    def __init__(self, capacity: float, episode: Episode) -> None:
        self.pace, self.episode = 1 / capacity, episode
        self.busy_until = 0.0

    def accept(self, now: float) -> float | None:
        """Return the seconds until the answer comes, or None: the connection is refused."""
        if self.busy_until - now > QUEUE or (self.episode.down and self.episode.lasts(now)):
            return None
        self.busy_until = max(self.busy_until, now) + self.pace
        return self.busy_until - now


class Fleet:
    """The clients, and a calendar of what is due: attempts, timeouts and answers."""

    def __init__(self, policy: str, episode: Episode, clients: int, seed: int) -> None:
        self.episode, self.now, self.tick = episode, 0.0, 0
        random.seed(f"{seed} {policy} {episode.title}")  # what the library's jitter draws from
        self.demand = random.Random(seed)  # the same calls under every policy
        self.server = Server(clients * CALLS / UTILISATION, episode)
        self.policies = [POLICIES[policy](lambda: self.now) for _ in range(clients)]
        self.due: Due = defaultdict(list)
        self.timeouts: Due = defaultdict(list)
        self.answers: Due = defaultdict(list)
        ticks = round(episode.watched_until / TICK)
        self.calls, self.attempts, self.successes = [0] * ticks, [0] * ticks, [0] * ticks

    def run(self) -> None:
        """Let time pass, tick by tick."""
        for tick in range(len(self.calls)):
            self.tick, self.now = tick, tick * TICK
            for attempt in self.answers.pop(tick, ()):
                self.succeed(attempt)
            for attempt in self.timeouts.pop(tick, ()):
                self.fail(attempt, TIMED_OUT)
            callers = [Attempt(client) for client in self.callers()]
            arriving = self.due.pop(tick, []) + callers
            self.calls[tick], self.attempts[tick] = len(callers), len(arriving)
            for attempt in arriving:
                self.send(attempt)

    def callers(self) -> list[int]:
        """Draw the clients that begin a call in this tick."""
        rate = CALLS * (self.episode.demand if self.episode.lasts(self.now) else 1.0)
        number = self.demand.binomialvariate(len(self.policies), rate * TICK)
        return self.demand.choices(range(len(self.policies)), k=number)

    def send(self, attempt: Attempt) -> None:
        """Make an attempt. Its fate is known as soon as it stands in the queue."""
        seconds = self.server.accept(self.now)
        if seconds is None:
            self.fail(attempt, REFUSED)
        elif seconds > READ_TIMEOUT:
            self.timeouts[self.tick + round(READ_TIMEOUT / TICK)].append(attempt)
        else:
            self.successes[self.tick] += 1
            if self.policies[attempt.client].budget is not None:
                self.answers[self.tick + 1 + int(seconds / TICK)].append(attempt)

    def fail(self, attempt: Attempt, outcome: Exception) -> None:
        """Ask what the library's clients ask, in their order: attempts, wait, budget."""
        policy = self.policies[attempt.client]
        if attempt.number + 1 < policy.max_attempts:
            delay = policy.delay(attempt.number, outcome)
            token = policy.budget and policy.budget.withdraw(ORIGIN)
            if policy.budget is None or token:
                again = Attempt(attempt.client, attempt.number + 1, token)
                self.due[self.tick + 1 + int(delay / TICK)].append(again)

    def succeed(self, attempt: Attempt) -> None:
        """Pay into the budget; a retry that succeeded gets its token back."""
        if (budget := self.policies[attempt.client].budget) is not None:
            budget.deposit(ORIGIN, refund=attempt.token)


# --- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """One policy's way through one episode."""

    policy: str
    episode: str
    attempts_per_request: float  # in the episode
    worst_over_mean: float  # the worst 100 ms of attempts, over the mean in normal times
    recovery: float | None  # seconds after the episode's end; None: not while it was watched
    ended_well: float  # share of the requests from the episode's start on
    load: list[float]  # attempts in each second, over the mean in normal times


def simulate(policy: str, name: str, clients: int, seed: int) -> Result:
    """Send one fleet through one episode."""
    episode = EPISODES[name]
    fleet = Fleet(policy, episode, clients, seed)
    fleet.run()
    during = slice(round(episode.start / TICK), round(episode.end / TICK))
    since = slice(during.start, None)
    return Result(
        policy=policy,
        episode=name,
        attempts_per_request=sum(fleet.attempts[during]) / sum(fleet.calls[during]),
        worst_over_mean=max(per(0.1, fleet.attempts)) / (clients * CALLS * 0.1),
        recovery=recovery(fleet),
        ended_well=sum(fleet.successes[since]) / sum(fleet.calls[since]),
        load=[attempts / (clients * CALLS) for attempts in per(1.0, fleet.attempts)],
    )


def per(seconds: float, counts: list[int]) -> list[int]:
    """Add up what was counted in each tick over longer spans."""
    size = round(seconds / TICK)
    return [sum(counts[i : i + size]) for i in range(0, len(counts), size)]


def recovery(fleet: Fleet) -> float | None:
    """Seconds from the episode's end until 99 % of the attempts succeed and go on doing so."""
    seconds = list(zip(per(1.0, fleet.successes), per(1.0, fleet.attempts), strict=True))
    bad = [second for second, (good, sent) in enumerate(seconds) if good < 0.99 * sent]
    last = max(bad, default=-1) + 1
    return None if last == len(seconds) else max(0.0, last - fleet.episode.end)


def first_retries(policy: RetryPolicy, outcome: httpx.Response | Exception, n: int) -> list[float]:
    """Return when the first retries of `n` clients arrive that fail at the same moment."""
    return [policy.delay(0, outcome) for _ in range(n)]


def simulate_all(clients: int, seed: int) -> list[Result]:
    """Send a fleet for each policy through each episode, on all cores."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    runs = [(policy, name, clients, seed) for name in reversed(EPISODES) for policy in POLICIES]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(simulate, *run) for run in runs]
        done = as_completed(futures)
        for _ in tqdm(done, "simulating", len(runs), unit="run", leave=False, disable=None):
            pass
    return [future.result() for future in futures]


def of_episode(results: list[Result], name: str) -> list[Result]:
    """Return an episode's results, in the order of the policies."""
    return [result for result in results if result.episode == name]


def table(results: list[Result]) -> Iterator[str]:
    """Yield the lines of a table for each episode."""
    for name, episode in EPISODES.items():
        yield f"\n{episode.title}, watched for {episode.watched_until - episode.end:g} s after it\n"
        yield f"{'':<18}{'attempts per':>14}{'worst 100 ms':>15}{'seconds to':>13}{'requests':>13}"
        yield f"{'':<18}{'request':>14}{'over the mean':>15}{'recovery':>13}{'ending well':>13}"
        for one in of_episode(results, name):
            seconds = "never" if one.recovery is None else f"{one.recovery:.0f}"
            yield (
                f"{one.policy:<18}{one.attempts_per_request:>14.2f}"
                f"{one.worst_over_mean:>15.1f}{seconds:>13}{one.ended_well:>13.1%}"
            )


def surprises(results: list[Result]) -> Iterator[str]:
    """Yield what is not as the cookbook says."""
    attempts = {one.policy: one.attempts_per_request for one in of_episode(results, "outage")}
    expected = {"no retries": 1.0, "default": 4.6, "full jitter": 4.8, "immediate retries": 5.0}
    for policy, number in expected.items():
        if abs(attempts[policy] - number) > 0.1:
            yield f"{policy}: {attempts[policy]:.2f} attempts per request, not {number}"
    if not 1.2 <= attempts["default + budget"] <= 1.8:
        yield f"default + budget: {attempts['default + budget']:.2f} attempts, not 1.2 to 1.8"
    recovered = {one.policy for one in of_episode(results, "overload") if one.recovery is not None}
    if recovered != {"no retries", "default + budget"}:
        yield f"recovered from the overload: {', '.join(sorted(recovered)) or 'none'}"


# --- the plots ------------------------------------------------------------------------------------

#: Okabe and Ito's palette: told apart by colour-blind readers too.
STYLES: Final[dict[str, dict[str, Any]]] = {
    "no retries": {"color": "#777777", "linestyle": ":"},
    "immediate retries": {"color": "#D55E00", "linestyle": "-", "linewidth": 1.2},
    "full jitter": {"color": "#E69F00", "linestyle": "--"},
    "default": {"color": "#0072B2", "linestyle": "-"},
    "default + budget": {"color": "#009E73", "linestyle": "-", "linewidth": 2.6},
}

TICKS: Final = [1, 2, 5, 10, 20]  # of the logarithmic axis: times the normal load


def draw(results: list[Result], clients: int, folder: Path) -> list[Path]:
    """Write both plots; the same results make the same bytes."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    plots = {"fleet_load.svg": load_plot(results), "fleet_first_retry.svg": retry_plot(clients)}
    with matplotlib.rc_context({"svg.hashsalt": "httpx-production"}):
        for name, figure in plots.items():
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
    return [folder / name for name in plots]


def load_plot(results: list[Result]) -> Figure:
    """Draw what arrives at the server, second by second, under each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(len(EPISODES))
    for panel, (name, episode) in zip(panels, EPISODES.items(), strict=True):
        for one in of_episode(results, name):
            seconds = [second - episode.start for second in range(len(one.load))]
            panel.plot(seconds, one.load, label=one.policy, **STYLES[one.policy])
        panel.axvspan(0, episode.end - episode.start, color="#000000", alpha=0.07, linewidth=0)
        panel.set_xlim(-episode.start, episode.watched_until - episode.start - 1)
        panel.set(yscale="log", ylabel="attempts per second,\ntimes the normal load (log scale)")
        panel.set_yticks(TICKS, [f"{tick}\u00d7" for tick in TICKS])
        panel.set_yticks([], minor=True)
        tidy(panel, episode.title, 1 / UTILISATION)
    label(panels[0], 1 / UTILISATION, 1.0)
    panels[-1].set_xlabel("seconds since it began (shaded: while it lasts)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def retry_plot(clients: int) -> Figure:
    """Draw when the first retries arrive of clients that have all failed at the same moment."""
    from matplotlib.figure import Figure

    default, full = RetryPolicy(), RetryPolicy(backoff=full_jitter)
    waits = [
        ("default: 0.8 to 1.0 s", "#0072B2", first_retries(default, REFUSED, clients)),
        ("full jitter: 0 to 1 s", "#E69F00", first_retries(full, REFUSED, clients)),
        ("told \u201cRetry-After: 1\u201d", "#CC79A7", first_retries(default, COME_BACK, clients)),
    ]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    figure.suptitle(f"{clients:,} clients have failed at the same moment", fontsize=11)
    panels = figure.subplots(len(waits), sharex=True, sharey=True)
    bins, capacity = [0.05 * n for n in range(23)], clients * CALLS / UTILISATION * 0.05
    for panel, (title, color, arrivals) in zip(panels, waits, strict=True):
        counts, _, _ = panel.hist(arrivals, bins, color=color, rwidth=0.92)
        title = f"{title} \u2014 at most {max(counts):,.0f} in 50 ms"
        tidy(panel, title, capacity)
    label(panels[0], capacity, 0.7)
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
    panels[1].set_ylabel("first retries arriving per 50 ms")
    panels[-1].set_xlabel("seconds since then")
    return figure


def tidy(panel: Axes, title: str, capacity: float) -> None:
    """Give a panel its title, the line of what the server can do, and no more ink than it needs."""
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.axhline(capacity, color="#000000", linewidth=0.8)


def label(panel: Axes, capacity: float, x: float) -> None:
    """Say what the line is, ending at `x` (a share of the panel's width)."""
    panel.annotate(
        "what the server can do",
        xy=(x, capacity),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=8,
    )


def main() -> int:
    """Simulate, print, draw; 1 when something is not as the cookbook says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=10_000, help="size of the fleet (10000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same results (1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for SVGs")
    options = parser.parse_args()
    if options.clients < 100:
        parser.error("--clients must be at least 100: fewer are no fleet")
    if missing := [name for name in ("matplotlib", "tqdm") if find_spec(name) is None]:
        parser.error(f"needs {' and '.join(missing)}: uv run --group examples {sys.argv[0]}")
    started = time.perf_counter()
    results = simulate_all(options.clients, options.seed)
    print(f"{options.clients:,} clients, {CALLS * 60:g} calls a minute each, seed {options.seed}")
    print(*table(results), sep="\n")
    random.seed(options.seed)
    plots = draw(results, options.clients, options.out)
    print(f"\nplots: {', '.join(map(str, plots))}  ({time.perf_counter() - started:.0f} s in all)")
    for surprise in surprises(results):
        print(f"NOT AS THE COOKBOOK SAYS: {surprise}", file=sys.stderr)
    return 1 if list(surprises(results)) else 0


if __name__ == "__main__":
    sys.exit(main())
