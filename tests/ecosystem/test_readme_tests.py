"""The README's tests for respx and pytest-httpx run as they stand there, with its conftest.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Testing your code")[2].partition("\n## ")[0]
MARKED = r"^<!-- ecosystem -->\n```python\n(.*?)^```"
TESTS = re.findall(MARKED, SECTION, re.DOTALL | re.MULTILINE)
CONFTEST = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)[0]


def run(folder: Path, *tests: str) -> str:
    """Run files of tests as a reader's own; what pytest says of them."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for number, text in enumerate(tests):
        (folder / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=15
    )
    return done.stdout + done.stderr


def test_the_readme_s_tests_pass(tmp_path: Path) -> None:
    """Both, without a wait: pytest tells how long it took."""
    assert len(TESTS) == len(re.findall("<!-- ecosystem -->", README)) == 2
    said = run(tmp_path, *TESTS)
    assert re.search(r"^2 passed in [0-4]\.\d\ds", said, re.MULTILINE), said


@pytest.mark.parametrize("left", [0, 1])
def test_too_few_answers_fail_at_once(tmp_path: Path, left: int) -> None:
    """With the message that says so, and not after all attempts and 14 s."""
    (text,) = (one for one in TESTS if "httpx_mock" in one)
    lines = text.splitlines(keepends=True)
    answers = [line for line in lines if "add_response" in line]
    said = run(tmp_path, "".join(one for one in lines if one not in answers[left:]))
    assert "No response can be found for GET request on https://api.example.com/things" in said
    assert re.search(r"^1 failed.* in [0-4]\.\d\ds", said, re.MULTILINE), said
