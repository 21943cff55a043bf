"""A small run of examples/fleet_simulation.py, and that it decides as the library does."""

import importlib.util
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from httpx_production._call import Call

SCRIPT = Path(__file__).parent.parent / "examples" / "fleet_simulation.py"
CLIENTS = 150
POLICIES = ("no retries", "immediate retries", "full jitter", "default", "default + budget")


@pytest.fixture(scope="module")
def fleet() -> ModuleType:
    """The script as a module; dataclasses look it up in sys.modules."""
    spec = importlib.util.spec_from_file_location("fleet_simulation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(fleet: ModuleType) -> list[Any]:
    """Each policy's way through each episode, for a small fleet."""
    names = ("outage", "overload")
    return [fleet.simulate(policy, name, CLIENTS, 1) for name in names for policy in POLICIES]


@pytest.mark.time_limit(60)
def test_small_fleet_does_what_the_cookbook_says(fleet: ModuleType, results: list[Any]) -> None:
    """The numbers of the cookbook hold for a fleet of 150 as for one of 10,000."""
    assert tuple(fleet.POLICIES) == POLICIES
    assert list(fleet.surprises(results)) == []


def test_surprises_are_told(fleet: ModuleType, results: list[Any]) -> None:
    """What is not as the cookbook says is named: the script's exit code comes from it."""
    wrong = [replace(one, attempts_per_request=3.0, recovery=None) for one in results]
    told = "\n".join(fleet.surprises(wrong))
    assert "default: 3.00 attempts per request, not 4.6" in told
    assert "default + budget: 3.00 attempts, not 1.2 to 1.8" in told
    assert "recovered from the overload: none" in told


def test_table_has_a_line_for_each_policy(fleet: ModuleType, results: list[Any]) -> None:
    """The table shows all five columns, for both episodes."""
    lines = list(fleet.table(results))
    for policy in POLICIES:
        assert sum(line.startswith(f"{policy}  ") for line in lines) == 2
    default = [line.split() for line in lines if line.startswith("default  ")]
    assert [row[3] for row in default] == ["0", "never"]
    assert default[0][1].startswith("4.")
    assert all(row[4].endswith("%") for row in default)


def test_same_seed_gives_the_same_results(fleet: ModuleType) -> None:
    """A run can be repeated; another seed gives another one."""
    first, again, other = (fleet.simulate("default", "outage", 20, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("policy", POLICIES)
def test_simulation_decides_as_the_clients_do(fleet: ModuleType, policy: str) -> None:
    """Attempts, waits and budget are those of the library's own decision, call after call."""
    episode = fleet.EPISODES["outage"]
    simulated, real = fleet.Fleet(policy, episode, 1, 1), fleet.Fleet(policy, episode, 1, 1)
    random.seed(7)
    expected = [waits(real.policies[0], fleet.REFUSED) for _ in range(5)]
    random.seed(7)
    for ticks in expected:
        assert simulated_waits(simulated, fleet) == ticks
    attempts = {"no retries": [0] * 5, "default + budget": [4, 4, 2, 0, 0]}
    assert [len(ticks) for ticks in expected] == attempts.get(policy, [4] * 5)


def waits(policy: Any, outcome: Exception) -> list[int]:
    """The waits, in ticks, of one call that the library decides about."""
    call = Call(httpx.Request("GET", "https://api.example.com/"), policy, 0.0)
    found = []
    while (failed := call.after(outcome, 0.0)) is not None:
        found.append(1 + int(failed.delay / 0.01))
    return found


def simulated_waits(simulated: Any, fleet: ModuleType) -> list[int]:
    """The same of one call in the simulation, with its time standing still."""
    simulated.fail(fleet.Attempt(0), fleet.REFUSED)
    found = []
    while simulated.due:
        tick, (attempt,) = simulated.due.popitem()
        found.append(tick)
        simulated.fail(attempt, fleet.REFUSED)
    return found


def test_budgets_go_by_the_simulated_clock(fleet: ModuleType) -> None:
    """A minute of simulated time fills a budget again; each client has one of its own."""
    simulated = fleet.Fleet("default + budget", fleet.EPISODES["outage"], 2, 1)
    mine, yours = (policy.budget for policy in simulated.policies)
    assert [bool(mine.withdraw(fleet.ORIGIN)) for _ in range(11)] == [True] * 10 + [False]
    assert yours.withdraw(fleet.ORIGIN)
    simulated.now = 61.0
    assert mine.withdraw(fleet.ORIGIN)


def test_first_retries_keep_the_jitter_and_obey_retry_after(fleet: ModuleType) -> None:
    """Narrow, full, or all at the moment that the server named."""
    default, full = fleet.RetryPolicy(), fleet.RetryPolicy(backoff=fleet.full_jitter)
    narrow = fleet.first_retries(default, fleet.REFUSED, 500)
    wide = fleet.first_retries(full, fleet.REFUSED, 500)
    assert 0.8 <= min(narrow) < 0.82
    assert 0.98 < max(narrow) <= 1.0
    assert 0.0 <= min(wide) < 0.05
    assert 0.95 < max(wide) <= 1.0
    assert set(fleet.first_retries(default, fleet.COME_BACK, 500)) == {1.0}


def test_import_needs_no_plotting_library() -> None:
    """Whoever only reads or tests the simulation needs neither matplotlib nor tqdm."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='simulation');"
        "assert not {'matplotlib', 'tqdm', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(SCRIPT)], check=True, timeout=20)


def test_missing_libraries_are_named_at_once(
    fleet: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the examples' group the script says how to run it, before it simulates."""
    monkeypatch.setattr(fleet, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["examples/fleet_simulation.py"])
    with pytest.raises(SystemExit) as stopped:
        fleet.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "needs matplotlib and tqdm" in message
    assert "uv run --group examples examples/fleet_simulation.py" in message


@pytest.mark.parametrize("name", ["fleet_load.svg", "fleet_first_retry.svg"])
def test_plots_are_there_small_and_dateless(name: str) -> None:
    """The cookbook shows them, and a new run changes them only when the numbers change."""
    path = SCRIPT.parent / name
    assert path.stat().st_size < 150_000
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{http://purl.org/dc/elements/1.1/}date"))
