"""A sender of webhooks: each event arrives, and none is acted on twice.

Run it with `uv run examples/webhooks.py`. No network: the receiver is started right here.
A POST is repeated because it carries an Idempotency-Key: the event's own id, so that it is the same
in every attempt, and also when the sender comes back to an event later. The receiver must act on a
key once. The library's log warns on stderr of the calls that give up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import httpx
from flaky_server import DROP, Answer, FlakyServer

from httpx_production import ProductionHTTPClient, RetryPolicy, jittered_backoff

# What the receiver answers to each event's attempts. DROP: it has acted, but nobody hears of it.
SCRIPT: dict[str, list[Answer]] = {
    "/hooks/paid": [200],
    "/hooks/shipped": [503, DROP, 200],
    "/hooks/delivered": [DROP, DROP, 200],
    "/hooks/returned": [503, 503, 503, 503, 200],  # longer than one call's three attempts
    "/hooks/refused": [400],
}
EVENTS = [path.rpartition("/")[2] for path in SCRIPT]

# A fifth of the default's waits, to save your time; in earnest, more attempts.
POLICY = RetryPolicy(max_attempts=3, backoff=lambda attempt: jittered_backoff(attempt) / 5)


@dataclass
class Sender:
    """Sends events, and keeps those that did not arrive."""

    client: httpx.Client
    outbox: list[str] = field(default_factory=list)  # in earnest: a table of your database

    def send(self, event: str) -> str:
        """Send one event; returns what became of it."""
        headers = {"Idempotency-Key": f'"event-{event}"'}  # a string of the draft's: in quotes
        try:
            response = self.client.post(f"/hooks/{event}", json={"event": event}, headers=headers)
        except httpx.TransportError as exc:  # it may have arrived: the key makes it safe to repeat
            self.outbox.append(event)
            return f"kept for later ({type(exc).__name__})"
        if response.is_success:
            return f"delivered, attempts: {len(response.extensions['retries']) + 1}"
        if response.status_code in POLICY.status_codes:
            self.outbox.append(event)
            return f"kept for later ({response.status_code})"
        return f"refused ({response.status_code}): no repetition mends that"

    def send_kept(self) -> list[tuple[str, str]]:
        """Send what is in the outbox once more, with the same keys."""
        kept, self.outbox = self.outbox, []
        return [(event, self.send(event)) for event in kept]


def acted_on(server: FlakyServer) -> Counter[str]:
    """What a receiver has acted on that keeps to the rule: a key once."""
    bodies: dict[str, bytes] = {}
    for request in server.received:
        key = request.headers["Idempotency-Key"]
        assert bodies.setdefault(key, request.body) == request.body, "the key of another event"
    return Counter(key.strip('"').removeprefix("event-") for key in bodies)


def main() -> None:
    """Send all events, then those that were kept."""
    with (
        FlakyServer(SCRIPT) as server,
        ProductionHTTPClient(base_url=server.url, retry=POLICY) as client,
    ):
        sender = Sender(client)
        for event in EVENTS:
            print(f"{event:<12}{sender.send(event)}")
        print(f"\nin the outbox: {sender.outbox}")
        assert sender.outbox == ["returned"], sender.outbox
        for event, end in sender.send_kept():
            print(f"{event:<12}{end}")
        arrived, acted = server.requests.total(), acted_on(server)
    print(f"\n{arrived} requests arrived for {len(EVENTS)} events, each acted on once")
    assert not sender.outbox
    assert arrived == 13, arrived
    assert acted == dict.fromkeys(EVENTS, 1), acted


if __name__ == "__main__":
    main()
