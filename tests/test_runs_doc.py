"""The table of faults names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOC = (TESTS.parent / "docs" / "runs.md").read_text()


def test_every_fault_names_its_test():
    rows = [row for row in DOC.split("## Faults")[1].splitlines() if row.startswith("| ")][1:]
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (TESTS / file).read_text() if test else (TESTS / file).exists()
