"""report.md from the facts. Model outputs, ids and messages are hostile: every value is escaped for Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqtool.files import read_json, write_text
from sqtool.hygiene import clean
from sqtool.report.facts import Facts, collect
from sqtool.report.html import write_html

TEMPLATE = "report.md.j2"
_MARKUP = re.compile(
    r"[\\`*{}\[\]<>#|~!&$@^]"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # inside a word it is no emphasis, and names keep their look
    r"|(?<=[A-Za-z]):(?=//)|(?<=www)\.",  # addresses that a renderer would make links of
    re.IGNORECASE,
)
_LINE_START = re.compile(r"^([-+](?=\s|$)|[-=]+\s*$|\d{1,9}(?=[.)](?:\s|$)))")
_FENCE = re.compile(r"`{3,}")


class Raw(str):
    """Text that is Markdown already."""

    __slots__ = ()


def inline(text: Any) -> str:
    """Text that Markdown shows as it is, in one line: no emphasis, links, HTML, tables, headings or lists."""
    if isinstance(text, Raw):
        return str(text)
    flat = " ".join(clean(str(text)).split())
    escaped = _MARKUP.sub(lambda match: "\\" + match.group(), flat)
    return _LINE_START.sub(_no_list, escaped)


def _no_list(match: re.Match[str]) -> str:
    mark = match.group()
    return f"{mark}\\" if mark.isdigit() else f"\\{mark}"


def block(text: Any) -> Raw:
    """A fenced code block that its content cannot close."""
    body = clean(str(text)).rstrip("\n")
    longest = max((len(run) for run in _FENCE.findall(body)), default=0)
    fence = "`" * max(3, longest + 1)
    return Raw(f"{fence}text\n{body}\n{fence}")


def code(text: Any) -> Raw:
    """A code span in one line."""
    flat = " ".join(clean(str(text)).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", flat)), default=0)
    tick = "`" * (longest + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return Raw(f"{tick}{pad}{flat}{pad}{tick}") if flat else Raw("")


def render(facts: Facts) -> str:
    """The report's text."""
    return draw(TEMPLATE, facts=facts)


def draw(template: str, *, package: str = "sqtool.report", text: Callable[[Any], str] = inline, **values: Any) -> str:
    """A template of `package`, which may include those of the report; `text` escapes each value that it shows."""
    from jinja2 import ChoiceLoader, PackageLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in dict.fromkeys((package, "sqtool.report"))]),
        undefined=StrictUndefined,
        finalize=text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(block=block, code=code)
    drawn = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", drawn).strip() + "\n"


def write_report(folder: Path) -> Path:
    """Write `report.md` of the run in `folder` from what the folder holds, its plots beside it, and report.html with
    them in it; the path of report.md."""
    path = folder / "report.md"
    facts = collect(folder)
    if facts.plots:
        from sqtool.report.plots import draw_plots

        draw_plots(folder, read_json(Path(facts.plots_from)))
    if facts.speculation_from:
        from sqtool.report.speculation_plots import draw_speculation

        draw_speculation(folder, read_json(Path(facts.speculation_from)))
    text = render(facts)
    write_text(path, text)
    write_html(path.with_suffix(".html"), text)
    return path
