"""The report's plots, as SVG that is the same for the same results."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator

from .numbers import format_number
from .tables import Row, Task

# Colours by role, for light and for dark paper. The series are Okabe and Ito's, which the colour-blind tell apart,
# made darker or lighter until they have a contrast of 3 to the paper. The first is for what others are compared with.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b2430",
    "quiet": "#56616e",
    "rule": "#d9dee4",
    "series-0": "#5c6672",
    "series-1": "#0072b2",
    "series-2": "#d35400",
    "series-3": "#00855f",
    "series-4": "#b04a8c",
    "series-5": "#a87400",
    "series-6": "#2f8fc9",
}
DARK = {
    "paper": "#171c23",
    "ink": "#e8ecf1",
    "quiet": "#a5b0bd",
    "rule": "#343d49",
    "series-0": "#aeb7c2",
    "series-1": "#56b4e9",
    "series-2": "#ff9248",
    "series-3": "#2fcb9b",
    "series-4": "#e596c6",
    "series-5": "#f0c443",
    "series-6": "#8fa8ff",
}
_MARKERS, _DASHES = "osD^vPX", ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
_WIDTH = 4.0  # inches: a phone's width, so that a page needs to shrink no text
_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "drconv_mm",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.edgecolor": LIGHT["quiet"],
    "axes.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "savefig.facecolor": LIGHT["paper"],
}


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: A file name without its ending.
        svg: The picture, a whole SVG file on light paper.
        alt: What it shows, for those who don't see it.
        caption: How to read it.
    """

    name: str
    svg: str
    alt: str
    caption: str


class Looks:
    """Colour, marker and line of each conv type, the same in all plots."""

    def __init__(self, convs: list[str], baseline_conv: str):
        others = [conv for conv in convs if conv != baseline_conv]
        self.index = {baseline_conv: 0, **{conv: i + 1 for i, conv in enumerate(others)}}

    def role(self, conv: str) -> str:
        """Its colour's role in `LIGHT` and `DARK`; from the eighth conv type on they come again, with other markers."""
        index = self.index[conv]
        return f"series-{(index - 1) % 6 + 1 if index else 0}"

    def __call__(self, conv: str) -> dict:
        """Arguments of ``Axes.plot``."""
        index = self.index[conv]
        return {"color": LIGHT[self.role(conv)], "marker": _MARKERS[index % 7], "linestyle": _DASHES[index % 6]}


def difference_plot(task: Task, looks: Looks) -> Plot | None:
    """Difference of each conv type to the baseline conv, with its interval; None where there is nothing to compare."""
    rows = [row for row in task.rows if row.difference is not None and np.isfinite(row.difference.mean)]
    if not rows:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 0.75 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            paired, look = row.difference, looks(row.conv)
            known = np.isfinite(paired.low)
            if known:
                axes.plot([paired.low, paired.high], [place, place], color=look["color"], linewidth=2.4)
            fill = look["color"] if paired.supported else LIGHT["paper"]
            axes.plot(paired.mean, place, color=look["color"], marker=look["marker"], markersize=8, mfc=fill, mew=1.8)
        axes.axvline(0, color=LIGHT["ink"], linewidth=1)
        axes.set_yticks(range(len(rows)), [_short(row.conv) for row in rows], color=LIGHT["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(_Ticks(task.unit, sign=True))
        axes.margins(x=0.12)
        points = ", points" if task.unit == "%" else ""
        # Of the figure: under the axes alone a long one would be cut off.
        label = f"{task.metric['label']} less {_short(task.baseline_conv)}'s{points}"
        figure.supxlabel(label, fontsize=matplotlib.rcParams["axes.labelsize"])
        svg = _svg(figure)
    caption = (
        f"Difference to {task.baseline_conv}, with the 95 % interval of the mean over the seeds. "
        "Filled: the seeds support a difference; hollow: they don't, or there is one seed."
    )
    return Plot(f"{task.name}_difference", svg, task.sentence(), caption)


COSTS = {
    "multiply_adds": ("multiply-adds an image", "count"),
    "seconds_per_iteration": ("time of a training iteration", "seconds"),
}


def cost_plot(task: Task, looks: Looks, cost: str) -> Plot:
    """The metric against a field of the results, one of `COSTS`; bars are standard deviations."""
    label, unit = COSTS[cost]
    found = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for row in task.rows:
            x, y, look = row.summary(cost), row.summary("value"), looks(row.conv)
            found.append(f"{row.conv} {format_number(y.mean, task.unit)} at {format_number(x.mean, unit)}")
            if not np.isfinite(y.mean):
                continue
            bars = {f"{axis}err": s.std if s.n > 1 and s.std > 0 else None for axis, s in (("x", x), ("y", y))}
            axes.errorbar(
                x.mean, y.mean, **bars, color=look["color"], marker=look["marker"], markersize=8,
                capsize=3, linestyle="none", elinewidth=1.6,
            )  # fmt: skip
        axes.margins(0.15)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(_Ticks(unit))
        axes.yaxis.set_major_formatter(_Ticks(task.unit))
        axes.set_xlabel(label)
        axes.set_ylabel(task.metric_name)
        _legend(figure, task.rows, looks, line=False)
        svg = _svg(figure)
    caption = f"{task.metric['label']} against {label}"
    caption += "; bars are one standard deviation over the seeds." if _has_seeds(task) else "."
    return Plot(f"{task.name}_{cost}", svg, f"{task.metric['label']} against {label}: {', '.join(found)}.", caption)


def curve_plot(task: Task, looks: Looks, curve: str) -> Plot | None:
    """The ``'loss'`` or ``'metric'`` while training, or None where none was logged: a thin line a seed, thick means."""
    label = "training loss" if curve == "loss" else task.metric_name
    found = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for row in task.rows:
            curves = [np.array(r.curves[curve], float) for r in row.results if r.curves[curve]]
            if not curves:
                continue
            look = looks(row.conv)
            if curve == "loss":
                look["marker"] = None
            for points in curves if len(curves) > 1 else ():
                axes.plot(*points.T, color=look["color"], linewidth=0.8, alpha=0.35)
            common = sorted(set.intersection(*({float(x) for x in points[:, 0]} for points in curves)))
            if not common:
                continue
            mean = np.mean([[dict(points)[x] for x in common] for points in curves], 0)
            axes.plot(common, mean, **look, markersize=5)
            unit = "" if curve == "loss" else task.unit
            ends = " to ".join(format_number(value, unit) for value in (mean[0], mean[-1]))
            found.append(f"{row.conv} {ends}")
        if not found:
            return None
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(_Ticks("" if curve == "loss" else task.unit))
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        _legend(figure, task.rows, looks, marker=curve != "loss")
        svg = _svg(figure)
    first = label.split()[0]
    caption = f"{first.capitalize() if first.islower() else first}{label[len(first) :]} by iteration"
    caption += ": thin lines are seeds, thick ones their mean." if _has_seeds(task) else "."
    return Plot(f"{task.name}_{curve}", svg, f"{label}, from first to last: {', '.join(found)}.", caption)


def share_plot(task: Task, row: Row) -> Plot | None:
    """Share of each region in each layer, the largest first; None for a conv type without regions."""
    layers = row.layers
    if not layers:
        return None
    names = _without_common_start([layer.name for layer in layers])
    most = max(len(layer.shares) for layer in layers)
    colors = matplotlib.colormaps["cividis"](np.linspace(0.15, 0.8, most))
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 0.9 + 0.24 * len(layers)), layout="constrained")
        axes = figure.subplots()
        for place, layer in enumerate(layers):
            starts = np.cumsum([0.0, *layer.shares[:-1]])
            # One collection a layer: a patch a region takes minutes with the layers of a deep network.
            axes.broken_barh(
                list(zip(starts, layer.shares, strict=True)),
                (place - 0.41, 0.82),
                facecolors=colors[: len(layer.shares)],
                edgecolor=LIGHT["paper"],
                linewidth=0.6,
            )
        axes.set_yticks(range(len(layers)), names, fontsize=8, color=LIGHT["ink"])
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}".replace("%", " %")))
        axes.set_xlabel("share of the pixels")
        svg = _svg(figure)
    even, uneven = (pick(layers, key=lambda layer: layer.entropy) for pick in (max, min))
    alt = (
        f"Region shares of {row.conv}: most even in {even.name} (entropy {even.entropy:.2f} of 1, the largest region "
        f"has {even.shares[0]:.0%}), least in {uneven.name} ({uneven.entropy:.2f}, {uneven.shares[0]:.0%})."
    )
    caption = f"{row.conv}: share of each region in each layer, the largest first, over validation images."
    return Plot(f"{task.name}_{row.conv}_regions", svg, alt, caption)


def _has_seeds(task: Task) -> bool:
    """Whether there is a spread to be seen."""
    return any(row.summary("value").n > 1 for row in task.rows)


class _Ticks(Formatter):
    """`format_number`, with as many decimals as tell the ticks of an axis apart."""

    def __init__(self, unit: str, sign: bool = False):
        self.unit, self.sign = unit, sign

    def __call__(self, value: float, position: int | None = None) -> str:
        """The text of a tick."""
        step = min(np.diff(self.locs), default=1.0)
        decimals = next((d for d in range(8) if abs(round(step, d) - step) < 1e-6 * step), 8)
        text = format_number(value, self.unit, self.sign, decimals)
        return re.sub(r"\.0+(?= )|(?<=\.)(\d*?)0+(?= )", r"\1", text)  # 1.5 s beside 1 s, not 1.50 s


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _without_common_start(names: list[str]) -> list[str]:
    parts = [name.split(".") for name in names]
    while len(names) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return [_short(".".join(p)) for p in parts]


def _legend(figure: Figure, rows: list[Row], looks: Looks, line: bool = True, marker: bool = True) -> None:
    handles = []
    for row in rows:
        look = looks(row.conv)
        look.update({} if line else {"linestyle": "none"}, **({} if marker else {"marker": None}))
        handles.append(Line2D([], [], markersize=6, **look))
    names = [_short(row.conv) for row in rows]
    columns = 2 if max(map(len, names)) <= 18 else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6, fontsize=9)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


@dataclass(frozen=True)
class TaskPlots:
    """All plots of a task."""

    difference: Plot | None
    costs: list[Plot]
    curves: list[Plot]
    shares: list[Plot]

    @property
    def all(self) -> list[Plot]:
        """As one list."""
        return [*([self.difference] if self.difference else []), *self.costs, *self.curves, *self.shares]


def task_plots(task: Task, looks: Looks) -> TaskPlots:
    """Draws them."""
    curves = [curve_plot(task, looks, curve) for curve in ("loss", "metric")]
    shares = [share_plot(task, row) for row in task.rows]
    return TaskPlots(
        difference_plot(task, looks),
        [cost_plot(task, looks, cost) for cost in COSTS],
        [plot for plot in curves if plot],
        [plot for plot in shares if plot],
    )
