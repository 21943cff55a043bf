"""The examples that need other packages: each runs offline and prints what it promises."""

import pytest
from test_examples import WITH_PACKAGES, check, start


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("name", sorted(WITH_PACKAGES))
def test_example_runs_offline_and_prints_its_key_lines(name: str) -> None:
    """A web app by uvicorn, a progress bar by tqdm, workers that gunicorn forks."""
    with start(name) as process:
        try:
            check(process, WITH_PACKAGES[name])
        finally:
            process.kill()
