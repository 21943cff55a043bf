"""The plans of `soak.py`: what one call asks, what becomes of it, and what may come of that."""

import random
from dataclasses import dataclass, field

import httpx
from soak_servers import FAULTS, GENTLE, UNREAD, content, digest

KINDS = tuple(FAULTS)
READINGS = ["whole"] * 6 + ["streamed", "slowly", "half", "dropped", "unread"]
LIMITS = {
    "sync": ["total", "attempt", "closed"],
    "asyncio": ["total", "attempt", "closed", "task", "asyncio", "anyio"],
    "trio": ["total", "attempt", "closed", "trio", "anyio"],
}
EXPECTED = httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError


@dataclass
class Plan:
    """One call: what is asked, what the server does about it, and what the caller does."""

    number: str
    kind: str  # of server
    method: str
    body: bytes = field(repr=False)
    body_is: str
    size: int
    faults: list[str]  # of the first attempts
    reading: str
    limit: str  # a deadline, a cancellation, or none
    seconds: float  # until that

    @classmethod
    def draw(
        cls, chance: random.Random, number: str, limits: list[str], kinds: tuple[str, ...] = KINDS
    ) -> "Plan":
        kind = chance.choice(kinds)
        method = chance.choice(["GET", "GET", "POST", "PUT"])
        is_hard = chance.random() < 0.3
        faults = chance.choices((FAULTS if is_hard else GENTLE)[kind], k=1 + is_hard)
        return cls(
            number,
            kind,
            method,
            body=chance.randbytes(int(10 ** chance.uniform(0, 5.5))) if method != "GET" else b"",
            body_is=chance.choice(["bytes", "generator", "file"]),
            size=int(10 ** chance.uniform(0, 5.5)),
            faults=faults if chance.random() < 0.7 else [],
            reading=chance.choice(READINGS),
            limit=chance.choice(limits) if chance.random() < 0.3 else "",
            seconds=chance.choice([0.001, chance.uniform(0, 0.02), chance.uniform(0, 0.3)]),
        )

    @property
    def path(self) -> str:
        return f"/{self.number}/{self.size}/{','.join(self.faults)}"

    def must_succeed(self) -> bool:
        """A caller waits for all of it, and no fault is in the way that is not mended by retries.

        Over HTTP/2 a neighbour's fault may be.
        """
        if self.limit or self.reading not in ("whole", "streamed", "slowly"):
            return False
        is_gentle = self.kind != "h2" and set(self.faults) <= set(GENTLE[self.kind])
        return is_gentle or (self.method == "GET" and self.reading == "whole")

    def is_right(self, answer: bytes) -> bool:
        bodies = [digest(self.body), *([UNREAD] if "early" in self.path else [])]
        wholes = [content(self.number, self.size, body) for body in bodies]
        if self.reading == "half" or self.limit == "closed":
            return any(whole.startswith(answer) for whole in wholes)
        return answer in wholes

    def may_raise(self, exc: Exception) -> bool:
        if isinstance(exc, httpx.PoolTimeout):
            return self.limit in ("total", "attempt")
        closed = {"closed": httpx.StreamError, "closing": RuntimeError}.get(self.limit, ())
        return not self.must_succeed() and isinstance(exc, (*EXPECTED, closed))
