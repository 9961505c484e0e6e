"""A self-contained HTML page of text, figures and tables: one file, no script, and nothing loaded from anywhere."""

import base64
import html
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd
from PIL import Image, UnidentifiedImageError

from resjax import records
from resjax.config import ConfigError

SHOWN = 0.72  # CSS pixels per pixel: figures of 200 dpi are a half larger than on paper
BROAD = 700  # CSS pixels: a figure that scrolls on a phone, on which it would be too small
LONG = 6  # sections; a page of more has a list of them
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --quiet: #595959; --line: #d9d9d9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e8e8e8; --quiet: #a8a8a8; --line: #3a3d42; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 42rem; margin: .5rem 0; overflow-wrap: break-word; }
a { color: inherit; }
nav ol { list-style: none; margin: 1.5rem 0 0; padding: 0; columns: 24rem 2; font-size: .9rem; }
nav li { break-inside: avoid; padding: .15rem 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
details { margin: .6rem 0; padding: .1rem .8rem; border-left: 3px solid var(--line); }
summary { cursor: pointer; font-size: .9rem; padding: .3rem 0; }
section > dl, details > dl { margin: .6rem 0; }
dl { display: grid; grid-template-columns: fit-content(14rem) minmax(0, 1fr); gap: .1rem 1rem; margin: 0;
  font-size: .85rem; color: var(--quiet); }
dt { overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; padding: .5rem; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption, caption { font-size: .85rem; color: var(--quiet); }
figcaption { max-width: 42rem; }
.wide { overflow-x: auto; margin: 1rem 0 .4rem; }
table { border-collapse: collapse; font-size: .77rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .2rem .45rem; text-align: left; vertical-align: top; white-space: pre;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); }
th[scope=row], thead th:first-child, th[scope=rowgroup] span, caption span { position: sticky; left: 0; }
th[scope=row], thead th:first-child { background: var(--paper); font-weight: 400; }
th[scope=rowgroup] { padding: .7rem 0 .2rem; }
th[scope=rowgroup] span { padding: 0 .45rem; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media (max-width: 40rem) { figure img { padding: 0; } figure img.broad { max-width: 36rem; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --line: #ccc; }
  @page { margin: 15mm; }
  main { max-width: none; padding: 0; }
  h2, caption { break-after: avoid; }
  figure, tr, tbody { break-inside: avoid; }
  figure img { max-height: 205mm; max-width: 100%; width: auto; margin: 0 auto; border: 0; padding: 0; }
  .wide { overflow: visible; }
  table { font-size: .55rem; }
  th, td { padding: .1rem .3rem; }
}
"""


class Figure(NamedTuple):
    """A figure of a page.

    Attributes:
      path: of its PNG file, which becomes a part of the page.
      caption: below it.
      alt: what it shows, for those who can't see it.
    """

    path: str | os.PathLike
    caption: str
    alt: str


class Section(NamedTuple):
    """A part of a page; what is empty is left out.

    Attributes:
      heading: its title.
      paragraphs: of plain text, as all text here: markup in it is shown, not obeyed.
      figures: (path, caption, alt) of each.
      table: of ready strings; its index heads the rows, and the first level of one of two makes groups of rows.
      caption: of the table.
      facts: name -> what is said of it, in small print.
      folded: parts that a reader opens; on paper what is closed is left out.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: pd.DataFrame | None = None
    caption: str = ""
    facts: Mapping[str, str] = MappingProxyType({})
    folded: Sequence["Section"] = ()


def write(path: str | os.PathLike, title: str, sections: Iterable[Section], header: Mapping[str, str]) -> Path:
    """Writes a page, and replaces the file as a whole.

    Args:
      path: of the HTML file.
      title: of the page.
      sections: in their order.
      header: what is said of the page's origin, such as command, commit and device.

    Raises:
      ConfigError: a figure is missing or no PNG; one line that names it.
    """
    sections = [Section(*section) for section in sections]
    body = "".join(_section(section, number) for number, section in enumerate(sections, start=1))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<header>\n<h1>{_text(title)}</h1>\n{_facts(header)}{_contents(sections)}</header>\n{body}"
        "</main>\n</body>\n</html>\n"
    )
    with records.replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) <= LONG:
        return ""
    lines = (f'<li><a href="#s{i}">{_text(section.heading)}</a></li>\n' for i, section in enumerate(sections, start=1))
    return f'<nav aria-label="Contents">\n<ol>\n{"".join(lines)}</ol>\n</nav>\n'


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>\n" for key, value in facts.items())
    return f"<dl>\n{lines}</dl>\n" if facts else ""


def _section(section: Section, number: int) -> str:
    head = f'<section aria-labelledby="s{number}">\n<h2 id="s{number}">{_text(section.heading)}</h2>\n'
    return f"{head}{_content(section)}</section>\n"


def _content(section: Section) -> str:
    parts = [f"<p>{_text(paragraph)}</p>\n" for paragraph in section.paragraphs]
    parts += [_figure(Figure(*figure)) for figure in section.figures]
    if section.table is not None:
        parts.append(_table(section.table, section.caption))
    parts.append(_facts(section.facts))
    for part in section.folded:
        parts.append(f"<details>\n<summary>{_text(part.heading)}</summary>\n{_content(part)}</details>\n")
    return "".join(parts)


def _figure(figure: Figure) -> str:
    packed = io.BytesIO()
    try:
        with Image.open(figure.path, formats=["PNG"]) as image:
            size = [round(SHOWN * pixels) for pixels in image.size]  # given, so that nothing jumps while loading
            image.convert("RGB").save(packed, "WEBP", lossless=True, method=1)  # less than half of the PNG
    except UnidentifiedImageError:
        raise ConfigError(f"{figure.path}: not a PNG") from None
    except OSError as error:
        raise ConfigError(f"{figure.path}: {error.strerror or error}") from None
    source = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    broad = ' class="broad"' * (size[0] > BROAD)
    image = '<img width="{}" height="{}" '.format(*size) + f'alt="{_text(figure.alt)}"{broad} src="{source}">'
    return f"<figure>\n{_box(image, figure.alt)}<figcaption>{_text(figure.caption)}</figcaption>\n</figure>\n"


def _table(table: pd.DataFrame, caption: str) -> str:
    heads = [table.index.names[-1] or "", *table.columns]
    columns = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    labels = [label if isinstance(label, tuple) else ("", label) for label in table.index]
    groups = itertools.groupby(zip(labels, table.itertuples(index=False), strict=True), key=lambda row: row[0][0])
    bodies = "".join(_rows(str(name), group, len(heads)) for name, group in groups)
    head = f"<caption><span>{_text(caption)}</span></caption>\n<thead>\n<tr>{columns}</tr>\n</thead>\n"
    return _box(f"<table>\n{head}{bodies}</table>", caption)


def _rows(name: str, rows: Iterable[tuple[tuple, tuple]], columns: int) -> str:
    lines = [f'<th scope="rowgroup" colspan="{columns}"><span>{_text(name)}</span></th>'] if name else []
    for (_, label), values in rows:
        cells = "".join(f"<td>{_text(value)}</td>" for value in values)
        lines.append(f'<th scope="row">{_text(label)}</th>{cells}')
    return "<tbody>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</tbody>\n"


def _box(content: str, label: str) -> str:
    """What may be wider than the page scrolls by itself; tabindex lets those reach it who scroll by keyboard."""
    return f'<div class="wide" role="region" aria-label="{_text(label)}" tabindex="0">\n{content}\n</div>\n'


def _text(value: object) -> str:
    return html.escape(str(value))
