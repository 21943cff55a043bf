"""httpx clients with timeouts, connection limits and retries set for production."""

from ._budget import RetryBudget
from ._call import FailedAttempt
from .client import AsyncProductionHTTPClient, ProductionHTTPClient
from .retry import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    Outcome,
    RetryPolicy,
    jittered_backoff,
    parse_retry_after,
)
from .transport import AsyncPooledTransport, PooledTransport, PoolStats

__all__ = [
    "HTTPX_EXCEPTIONS",
    "RETRIABLE_STATUS_CODES",
    "AsyncPooledTransport",
    "AsyncProductionHTTPClient",
    "FailedAttempt",
    "Outcome",
    "PoolStats",
    "PooledTransport",
    "ProductionHTTPClient",
    "RetryBudget",
    "RetryPolicy",
    "__version__",
    "jittered_backoff",
    "parse_retry_after",
]

__version__ = "0.1.0"
