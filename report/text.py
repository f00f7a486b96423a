"""Words and numbers as a reader sees them; names from files are made harmless first."""

import math
import re
from html import escape

SYNTHETIC_WORLDS = ("nano", "planted")
LONGEST = 2_000
"""Characters of a name or reason from a file that are shown in a page."""
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # behind the end of a table's row a bracket would be an option of it
    "[": "{[}",
    "]": "{]}",
}
"""What means something to LaTeX -> how it is written."""
ARROWS = {"higher": "↑", "lower": "↓"}
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}


def world_label(world: str) -> str:
    """What a reader must know about where the numbers come from."""
    if world in SYNTHETIC_WORLDS:
        return f"synthetic {world} world: numbers say nothing about real models"
    return "real model" if world == "real" else f"{plain(world)} world"


def plain(text: str) -> str:
    """One line without control characters, so that a name cannot steer a terminal."""
    spaced = re.sub(r"\s+", " ", text)
    return "".join(c if c.isprintable() else "?" for c in spaced).strip()


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no links, tags, emphasis or table cells from a file."""
    escaped = re.sub(r"([\\`*\[\]<>|~&#!$@])", r"\\\1", _short(plain(text)))
    # inside a word an underscore is only an underscore
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return re.sub(r"(?i)(www)(?=\.)|(?=://)", r"\1\\", escaped)


def html(text: str) -> str:
    """Text that HTML shows as it is, in an element or in a quoted attribute."""
    return escape(_short(plain(text)), quote=True)


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, in a paragraph or in a cell of a table."""
    return "".join(LATEX.get(c, c) for c in _short(plain(text)))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def plot_text(text: str) -> str:
    """Text that matplotlib draws as it is: no formulas, no legend entry hidden by an underscore."""
    escaped = plain(text).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def number(value: float, sd: float | None = None, digits: int = 4) -> str:
    """`0.8931` or `0.8931±0.0012`; large numbers with fewer digits, `-0.0000` as `0.0000`."""
    if math.isclose(value, 0, abs_tol=0.5 * 10**-digits):
        value = 0.0
    shown = digits if abs(value) < 100 else 1
    return f"{value:.{shown}f}" + ("" if sd is None else f"±{sd:.{shown}f}")
