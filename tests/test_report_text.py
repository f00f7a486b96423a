"""Whatever a name from a file holds, a page shows it as it is: judged by parsers of others."""

import html as standard_html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report.text import LATEX, LONGEST, html, latex, markdown, plain

NASTY = [
    "a|b",
    "`code`",
    "<script>alert(1)</script>",
    "100 % of $5 & #1 _x_ ^2 ~ {a} \\end{document}",
    "[link](http://evil.example)",
    "![x](javascript:alert(1))",
    "two\nlines\r\nand\ttabs",
    "\x1b[31mred\x00",
    "a\u202eb",
    "x" * 100_000,
    "&lt;b&gt; &amp;",
    "\\|",
    "*bold* __strong__ ~~gone~~",
    "http://evil.example www.evil.example me@evil.example",
    '" onmouseover="alert(1)',
    "' onclick='alert(1)",
    "|\\`*_{}[]<>()#+-.!~&$@",
    "[at the start of a row]",
]
names = st.sampled_from(NASTY) | st.text(
    st.characters() | st.sampled_from("|`*_~<>[]()\\&#!$@%^{}\n\"'-"), max_size=60
)


def shown(text: str) -> str:
    """What a reader should see."""
    line = plain(text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


class Page(HTMLParser):
    """Everything that is not text, and the text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(deadline=None)
@given(names)
def test_html_has_only_the_tags_that_were_written(name):
    page = Page(f'<td title="{html(name)}">{html(name)}</td>')
    assert page.tags == [("td", [("title", shown(name))])]
    assert page.text == shown(name)


@settings(deadline=None)
@given(names)
def test_a_markdown_cell_is_one_cell_of_plain_text(name):
    library = pytest.importorskip("markdown_it")
    parser = library.MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(
        ["table", "strikethrough"]
    )
    source = f"| a | b |\n| --- | --- |\n| {markdown(name)} | end |\n"
    page = Page(parser.render(source))
    tags = [tag for tag, _ in page.tags]
    assert tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    # a parser trims a cell and knows no other white space than a line has
    assert page.text.split("b", 1)[1].strip().removesuffix("end").strip() == shown(name).strip()


def unset(source: str) -> str:
    """The text that LaTeX would set: every escape undone, in one pass."""
    back = {written: c for c, written in LATEX.items()}
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    return re.sub(pattern, lambda match: back[match.group()], source)


@settings(deadline=None)
@given(names)
def test_latex_sets_the_name_and_obeys_nothing_in_it(name):
    source = latex(name)
    assert unset(source) == shown(name)
    pattern = "|".join(map(re.escape, sorted(LATEX.values(), key=len, reverse=True)))
    assert not set(re.sub(pattern, "", source)) & set("\\&%$#_{}~^`<>|[]\n")


@settings(deadline=None)
@given(names)
def test_plain_is_one_printable_line(name):
    assert plain(name).isprintable()


@settings(deadline=None)
@given(names)
def test_a_name_cannot_be_longer_than_a_page_takes(name):
    longest = max(map(len, LATEX.values()))
    assert len(latex(name)) <= LONGEST * longest
    assert len(standard_html.unescape(html(name))) <= LONGEST
    assert len(markdown(name)) <= 2 * LONGEST
