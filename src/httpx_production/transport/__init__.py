"""The connections underneath: transports for production, usable without the clients."""

from ._pooled import AsyncPooledTransport, PooledTransport, PoolStats

__all__ = ["AsyncPooledTransport", "PoolStats", "PooledTransport"]
