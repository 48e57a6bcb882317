"""report.html: report.md as one page that needs nothing beside it. What looks like HTML in the Markdown stays text."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from sqtool.files import write_text

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --head: #f6f8fa; --soft: #59636e }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --head: #212830; --soft: #9198a1 }
  .plot { background: #fff } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { border-bottom: 1px solid var(--line); padding-bottom: .3rem } h2 { margin-top: 2.2rem }
h3 { margin-bottom: .4rem }
.table { overflow-x: auto; margin: .6rem 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { border: 1px solid var(--line); padding: .25rem .55rem; text-align: left; vertical-align: top }
td { max-width: 34rem }
th { background: var(--head) }
pre { background: var(--head); padding: .7rem; overflow-x: auto } code { font-size: 13px }
.plot { margin: 1rem 0; max-width: 56rem; padding: .4rem } .plot svg { max-width: 100%; height: auto }
"""
_IMAGE = re.compile(r'<p><img src="([A-Za-z0-9._-]+\.svg)" alt="([^"]*)" ?/?></p>')


def write_html(path: Path, markdown: str) -> None:
    """Write the page for `markdown`, with the SVG files beside `path` inside it."""
    write_text(path, page(markdown, path.parent))


def page(markdown: str, folder: Path) -> str:
    """The page; a picture that is not in `folder` is its text."""
    from markdown_it import MarkdownIt

    body = str(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    body = _IMAGE.sub(lambda match: _picture(folder / match[1], match[2]), body)
    title = escape(next((line.lstrip("# ") for line in markdown.splitlines() if line.startswith("# ")), "sqtool"))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}</body>\n</html>\n"
    )


def _picture(path: Path, alt: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return f"<p>{alt}</p>"
    start = text.find("<svg")
    return f'<div class="plot" role="img" aria-label="{alt}">{text[start:]}</div>' if start >= 0 else f"<p>{alt}</p>"
