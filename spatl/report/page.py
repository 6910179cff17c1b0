"""Pages of HTML that need no other file, and the sections, figures and tables they are made of.

A report must still be readable when it is mailed, printed or opened years later on a machine without a network, so
styles and pictures are inside, there are no scripts, and the content security policy forbids what it does not contain.
Whatever comes from users or clients (config, command, names, reasons) is escaped.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #5c6670; --line: #d5dade; --wash: #f3f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #15181b; --faint: #a0a9b1; --line: #3a4148; --wash: #1f2428 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem }
h3 { margin: 2rem 0 .5rem; font-size: 1.05rem }
p { margin: .3rem 0 1rem }
.faint, figcaption, .note { color: var(--faint) }
figure { margin: 0 }
.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / .75rem 100% no-repeat,
  linear-gradient(to left, var(--line), transparent) right / .75rem 100% no-repeat }
.wide:focus-visible { outline: 2px solid #0072b2 }
figure svg { display: block; width: 100%; min-width: 50rem; height: auto }
figcaption { margin-top: .5rem; font-size: .9rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.note { margin: 0 0 .4rem; font-size: .9rem }
.wide + .note { margin-top: 1.25rem }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin: .5rem 0 1rem }
.pictures figure { max-width: 19rem }
.pictures .row { display: flex; gap: .25rem }
.pictures img { width: 6rem; height: auto; max-width: 32%; border: 1px solid var(--line); image-rendering: pixelated }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom }
tbody tr:nth-child(even) { background: var(--wash) }
.text td, .text th { text-align: left; overflow-wrap: anywhere }
.text tbody th { min-width: 6rem }
.numbers { font-size: .9rem }
.numbers tbody th { font-weight: inherit }
.named th:first-child { text-align: left }
.named tbody td, .named tbody th { white-space: nowrap }
@media (max-width: 80rem) {
  .numbers { font-size: .8rem }
  .numbers th, .numbers td { padding: .2rem .25rem }
  .named tbody td, .named tbody th { white-space: normal }
  .named tbody th { min-width: 9rem }
}
pre { padding: .75rem 1rem; background: var(--wash); border: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .875rem }
summary { cursor: pointer }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --wash: #fff }
  body { max-width: none; padding: 0; font-size: 9pt }
  .wide { overflow: visible; background: none }
  .numbers { font-size: 7pt }
  figure svg { min-width: 0 }
  th, td { padding: .1rem .35rem }
  tr, figure { break-inside: avoid }
  h2, h3 { break-after: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'{images}">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="faint">{subtitle}</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def make_page(*, title: str, subtitle: str, sections: Iterable[str], pictures: bool = False) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        subtitle: Likewise.
        sections: HTML; empty ones are left out.
        pictures: Whether there are pictures in it (`pictures`).
    """
    return _PAGE.format(
        title=escape(title), css=_CSS, subtitle=escape(subtitle), sections="\n".join(filter(None, sections)),
        images="; img-src data:" if pictures else "",
    )  # fmt: skip


def section(title: str, content: str) -> str:
    """Return a section of HTML content under a heading, or nothing where there is no content."""
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def part(title: str, content: str) -> str:
    """Return a part of a section, of HTML content, under a heading of plain text."""
    return f"<h3>{escape(title)}</h3>\n{content}"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def listing(lines: Iterable[str]) -> str:
    """Return a list of lines of plain text, or nothing."""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>" if items else ""


def pictures(figures: Iterable[tuple[Sequence[tuple[bytes, str]], str]]) -> str:
    """Return pictures that stand in the page itself, beside and below each other.

    Args:
        figures: Of each, its pictures as PNG with what they show, for readers who cannot see it, and a caption; plain
            text both.
    """
    shown = "\n".join(
        f'<figure>\n<div class="row">{"".join(_picture(*each) for each in row)}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
        for row, caption in figures
    )
    return f'<div class="pictures">\n{shown}\n</div>' if shown else ""


def _picture(png: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def figure(svg: str, *, label: str, words: str, name: str) -> str:
    """Return a picture that scrolls by itself where it is too wide.

    Args:
        svg: One `<svg>` element.
        label: What the picture is, as plain text.
        words: What it shows, as plain text, for readers who cannot see it.
        name: An identifier, once on the page.
    """
    return (
        f'<figure>\n<div class="wide" role="img" aria-label="{escape(label)}" aria-describedby="{name}" tabindex="0">\n'
        f"{svg}</div>\n"
        f'<figcaption id="{name}">{escape(words)}</figcaption>\n</figure>'
    )


def provenance(config_yaml: str, command: str, title: str = "Resolved config") -> str:
    """Return the command that made a report, and its config."""
    return (
        f"<pre><code>{escape(command)}</code></pre>\n"
        f"<details>\n<summary>{escape(title)}</summary>\n<pre><code>{escape(config_yaml)}</code></pre>\n</details>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, both plain text."""
    body = "\n".join(map(_row, rows))
    return f'<table class="text">\n<tbody>\n{body}\n</tbody>\n</table>'


def table(name: str, caption: str, rows: Sequence[Mapping[str, str]], *, kind: str = "numbers") -> str:
    """Return a table of rows of plain text by column, escaped here, or nothing; a wide one scrolls by itself.

    What there is to say of it stands before it, where it wraps with the page.
    """
    if not rows:
        return ""
    note = f"note-{re.sub('[^a-z0-9]+', '-', name.lower())}"
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in rows[0])
    body = "\n".join(_row(map(_with_units, row.values())) for row in rows)
    return (
        f'<p class="note" id="{note}">{escape(caption)}</p>\n'
        f'<div class="wide" role="region" aria-label="{escape(name)}" aria-describedby="{note}" tabindex="0">\n'
        f'<table class="{kind}">\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table>\n</div>"
    )


def _with_units(cell: str) -> str:
    """Return a cell whose numbers keep their units, and what is added to them, on their line."""
    return re.sub(r"(?<=\d) (?=[kMGTP]?B\b|%|±)|(?<=±) ", "\N{NO-BREAK SPACE}", cell)


def _row(cells: Iterable[str]) -> str:
    first, *rest = map(escape, cells)
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
