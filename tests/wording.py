"""What httpx and httpcore call themselves: under `tests/under_httpx2` they are their successors."""

import httpcore
import httpx

HTTPX, HTTPCORE = httpx.__name__, httpcore.__name__  # loggers, folders and modules begin so
USER_AGENT = f"python-{HTTPX}/{httpx.__version__}"
