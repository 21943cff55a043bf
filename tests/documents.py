"""The documents, and the blocks and tables in them that tests hold to the code."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = r"(?:^<!-- (\w+) -->\n)?^```python\n(.*?)^```"


@dataclass(frozen=True)
class Document:
    """A Markdown file, by its path in the repository."""

    name: str

    @cached_property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, mark: str = "") -> list[str]:
        """Its Python, in order; `<!-- ecosystem -->` marks what needs other packages."""
        found = re.findall(BLOCK, self.text, re.DOTALL | re.MULTILINE)
        return [block for marked, block in found if marked == mark]

    def table(self, name: str) -> list[list[str]]:
        """The cells of the table between `<!-- name -->` and `<!-- end -->`, its head included."""
        lines = self.text.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0].splitlines()
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
        return [rows[0], *rows[2:]]


README = Document("README.md")
COOKBOOK = Document("examples/README.md")
FIGURES = Document("tests/benchmarks/README.md")
DOCUMENTS = [README, COOKBOOK, FIGURES]
