"""httpx clients with timeouts, connection limits and retries set for production."""

from ._budget import RetryBudget
from .client import AsyncProductionHTTPClient, ProductionHTTPClient
from .retry import (
    HTTPX_EXCEPTIONS,
    RETRIABLE_STATUS_CODES,
    FailedAttempt,
    RetryPolicy,
    jittered_backoff,
    parse_retry_after,
)

__all__ = [
    "HTTPX_EXCEPTIONS",
    "RETRIABLE_STATUS_CODES",
    "AsyncProductionHTTPClient",
    "FailedAttempt",
    "ProductionHTTPClient",
    "RetryBudget",
    "RetryPolicy",
    "jittered_backoff",
    "parse_retry_after",
]
