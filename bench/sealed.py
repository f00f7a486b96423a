"""JSON files that know whether they are still what was written: they hold their own checksum."""

import json
from pathlib import Path
from typing import Any

from bench.files import write_atomic
from bench.keys import content_key

CHECKSUM = "checksum"


class Damaged(ValueError):
    """A file is not what was written."""


def seal(content: dict[str, Any]) -> str:
    """The content as JSON text with its checksum. NaN is refused: a missing value is None."""
    plain = json.loads(json.dumps(content, allow_nan=False))  # tuples as lists, as a reader sees it
    return json.dumps({**plain, CHECKSUM: content_key(plain)}, indent=1, allow_nan=False)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write `seal(content)` atomically."""
    write_atomic(path, seal(content))


def unsealed(raw: Any) -> Any:
    """The content of a parsed file. Raises Damaged where it is not what was sealed.

    A file without checksum is taken as it is: others write such files.
    """
    if not isinstance(raw, dict) or CHECKSUM not in raw:
        return raw
    content = {name: value for name, value in raw.items() if name != CHECKSUM}
    if content_key(content) != raw[CHECKSUM]:
        raise Damaged("is damaged: its content is not that of its checksum")
    return content
