"""The report as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from ..results import CSV_COLUMNS
from .gallery import Picture
from .numbers import COLUMN_UNITS, format_number
from .plots import DARK, LIGHT, Looks, Plot, TaskPlots
from .tables import METHOD, Content


def render_html(
    content: Content,
    looks: Looks,
    plots: Sequence[TaskPlots],
    pictures: Sequence[Picture],
    left_out: int,
    csv: bytes,
) -> str:
    """The page.

    Every number in its tables stands in an element with the raw one in ``data-value`` and its unit in ``data-unit``.

    Args:
        content: What it says.
        looks: The colours of its conv types.
        plots: Of each task.
        pictures: Of the runs.
        left_out: Pictures that are not among them.
        csv: ``results.csv``, to be had from the page.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=format_number,
        raw=raw,
        # What it has of HTML is shown as text.
        markdown=lambda text: Markup(MarkdownIt("commonmark", {"html": False}).render(text)),
        svg=inline_svg,
        base64=lambda data: base64.b64encode(data).decode(),
    )
    return environment.get_template("template.html").render(
        content=content,
        looks=looks,
        tasks=list(zip(content.tasks, plots, strict=True)),
        pictures=pictures,
        left_out=left_out,
        csv=csv,
        columns=CSV_COLUMNS,
        units=COLUMN_UNITS,
        method=METHOD,
        light=LIGHT,
        dark=DARK,
    )


def raw(value: object) -> str:
    """A number as results.csv has it."""
    return repr(value) if isinstance(value, float) else str(value)


def inline_svg(plot: Plot, prefix: str) -> Markup:
    """A plot as an element of the page, in the page's colours.

    Args:
        plot: The plot.
        prefix: Put before its ids, which are unique only in itself.
    """
    text = plot.svg[plot.svg.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head).group()
    for start in (' id="', "url(#", ' xlink:href="#'):
        body = body.replace(start, f"{start}{prefix}-")
    body = body.replace("xlink:href=", "href=")
    for role, color in LIGHT.items():
        body = body.replace(color, f"var(--{role})")
    return Markup(f'<svg {box} role="img" aria-label="{escape(plot.alt)}">{body}')
