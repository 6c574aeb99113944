"""What the learning study's runs say: tables, differences with their intervals, and pictures."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev, variance

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from study_arms import ARMS, NETWORKS, trained_as

from drconv_mm.suite.statistics import CONFIDENCE, Paired, paired_difference

Found = dict[tuple[str, float], list[dict]]  # of a network: an arm and a learning rate, and its runs

VERDICTS = {  # of the pairs' own interval and that of the common scatter: whether zero is outside
    (True, True): "supported",
    (True, False): "by the pairs alone",
    (False, True): "by the common scatter alone",
    (False, False): "not supported",
}
RATE_COLORS = {0.05: "tab:green", 0.1: "tab:blue", 0.2: "tab:orange"}


def found_in(results: Path) -> dict[str, Found]:
    """The runs of each network, by arm and learning rate, in order of their seeds.

    Raises:
        SystemExit: There is none.
    """
    found: dict[str, Found] = {}
    for network, arm in product(NETWORKS, ARMS):
        paths = (results / "runs" / trained_as(network, arm)).glob(f"{arm}-lr*.json")
        runs = [json.loads(path.read_text()) for path in paths]
        for result in sorted(runs, key=lambda result: (result["learning_rate"], result["seed"])):
            found.setdefault(network, {}).setdefault((arm, result["learning_rate"]), []).append(result)
    for network, arms in list(found.items()):  # of another's runs, those at rates that it has been trained at
        rates = {rate for arm, rate in arms if trained_as(network, arm) == network}
        found[network] = {(arm, rate): runs for (arm, rate), runs in arms.items() if rate in rates}
        if not found[network]:
            del found[network]
    if not found:
        raise SystemExit(
            f"study_learning.py: no runs in {results / 'runs'}; make them with: study_learning.py run DATA"
        )
    return found


def mean_and_spread(values: list[float], digits: int = 1) -> str:
    """``mean +- standard deviation``, the latter from two values on."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(network: str, found: Found, seconds: dict[str, dict]) -> list[str]:
    """A network's lines of Markdown."""
    heads = [
        "arm", "rate", "seeds", "top-1", "all region 0", "maps shuffled", "val loss", "train loss",
        "layers over 0.3 log m (entropy: min, median)", "multiply-adds", "parameters",
        *(["step, s"] if seconds else []),
    ]  # fmt: skip
    lines = [f"### {network}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (arm, rate), runs in found.items():
        first = runs[0]
        top1 = [mean_and_spread([run[key] for run in runs]) for key in ("top1", "top1_region_zero", "top1_shuffled")]
        entropy = [max(0.0, value) for run in runs for value in run["entropy"].values()]  # -0.0 in older ones
        used = ""
        if ARMS[arm].num_regions < 2:
            top1[1:] = ["", ""]  # nothing to change
        else:
            used = f"{sum(e > 0.3 for e in entropy)} of {len(entropy)} ({min(entropy):.2f}, {median(entropy):.2f})"
        step = seconds.get(arm, {}).get("step")
        cells = [
            f"`{arm}`: {ARMS[arm].about}", str(rate), str(len(runs)), *top1,
            mean_and_spread([run["val_loss"] for run in runs], 2),
            f"{mean(run['train_loss'] for run in runs):.2f}", used,
            f"{first['multiply_adds'] / 1e6:.1f} M", f"{first['parameters'] / 1e6:.2f} M",
            *([f"{step:.2f}" if step else ""] if seconds else []),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def common_scatter(found: dict[str, Found]) -> tuple[float, int]:
    """Standard deviation of top-1 over the seeds, one for all settings with three, and its degrees of freedom."""
    settings = [
        [run["top1"] for run in runs]
        for network, arms in found.items()
        for (arm, _), runs in arms.items()
        if len(runs) > 2 and trained_as(network, arm) == network
    ]
    freedom = sum(len(values) - 1 for values in settings)
    return (sum((len(values) - 1) * variance(values) for values in settings) / max(1, freedom)) ** 0.5, freedom


@dataclass(frozen=True)
class Difference:
    """One arm less another at one learning rate, in points of top-1, twice.

    Attributes:
        other: The arm that is taken off.
        rate: Of learning.
        networks: Those that have both arms at it; each counts alike.
        pairs: Paired by seed and network, with the interval of the pairs' own scatter. Pairs that share a training are
            one, with their mean.
        seeds: How many trainings of each arm there are.
        mean: Of all seeds.
        half: Half of the interval's width, by the scatter that all settings have in common.
    """

    other: str
    rate: float
    networks: tuple[str, ...]
    pairs: Paired
    seeds: tuple[int, int]
    mean: float
    half: float

    @property
    def over(self) -> str:
        """The network, or how many."""
        return self.networks[0] if len(self.networks) == 1 else f"all {len(self.networks)}"

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half

    @property
    def verdict(self) -> str:
        """By which of the intervals it is not zero."""
        return VERDICTS[self.pairs.supported, abs(self.mean) > self.half]


def differences(found: dict[str, Found], ours: str, others: list[str]) -> list[Difference]:
    """One arm less each of some others: in each network that has both, and in all such together."""
    rates = sorted({rate for arms in found.values() for _, rate in arms})
    scatter, freedom = common_scatter(found)
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) if freedom else math.inf
    result = []
    for other, rate in product(others, rates):
        having = [network for network in found if {(other, rate), (ours, rate)} <= found[network].keys()]
        for networks in [(network,) for network in having] + ([tuple(having)] if len(having) > 1 else []):
            values = {
                arm: {n: {run["seed"]: run["top1"] for run in found[n][arm, rate]} for n in networks}
                for arm in (ours, other)
            }
            both: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for network in networks:
                first, second = values[ours][network], values[other][network]
                for seed in first.keys() & second.keys():
                    both.setdefault((trained_as(network, other), seed), []).append((first[seed], second[seed]))
            if len(both) < 2:
                continue
            pairs = paired_difference(
                *({pair: mean(found[place] for found in of) for pair, of in both.items()} for place in (1, 0))
            )
            weights: Counter = Counter()  # of each training, which may stand for two networks
            difference = 0.0
            for network, (sign, arm) in product(networks, ((1, ours), (-1, other))):
                for seed, value in values[arm][network].items():
                    weight = sign / len(values[arm][network]) / len(networks)
                    difference += weight * value
                    weights[trained_as(network, arm), arm, seed] += weight
            half = t * scatter * sum(weight**2 for weight in weights.values()) ** 0.5 if freedom else math.inf
            seeds = tuple(sum(of == arm for _, of, _ in weights) for arm in (ours, other))
            result.append(Difference(other, rate, networks, pairs, seeds, difference, half))
    return result


def difference_table(ours: str, found: list[Difference]) -> list[str]:
    """The differences' lines of Markdown."""
    less = f"{'DRConv' if ours == 'drconv' else ARMS[ours].about} less this"
    heads = [
        "arm", "rate", "networks", "pairs", f"{less}, in the pairs", "95 % interval",
        "seeds", "of all seeds", "95 % interval", "",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in found:
        cells = [
            ARMS[one.other].about, str(one.rate), one.over,
            str(one.pairs.n), f"{one.pairs.mean:+.1f}", f"{one.pairs.low:.1f} to {one.pairs.high:.1f}",
            " and ".join(map(str, one.seeds)), f"{one.mean:+.1f}", f"{one.low:.1f} to {one.high:.1f}",
            one.verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def color_of(rate: float) -> str:
    """The same in all pictures."""
    return RATE_COLORS.get(rate, "tab:gray")


def differences_figure(found: list[Difference]) -> Figure:
    """Both differences of each arm with their intervals: a column for each network, and one for all together.

    Every mean is within; an interval that reaches beyond is cut at the edge.
    """
    columns = {"networks together": [one for one in found if len(one.networks) > 1]}
    for one in found:
        if len(one.networks) == 1:
            columns.setdefault(one.networks[0], []).append(one)
    columns = {name: shown for name, shown in columns.items() if shown}
    arms = list(dict.fromkeys(one.other for one in found))
    rates = sorted({one.rate for one in found})
    edge = 1.5 * max(1.0, *(abs(middle) for one in found for middle in (one.pairs.mean, one.mean)))
    figure = Figure(figsize=(3.2 * len(columns) + 2.4, 0.42 * len(arms) + 1.6), layout="constrained")
    row_of = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for (name, shown), axes in zip(columns.items(), row_of, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for one in shown:
            color = color_of(one.rate)
            row = arms.index(one.other) + 0.56 * ((rates.index(one.rate) + 0.5) / len(rates) - 0.5)
            axes.plot([one.pairs.low, one.pairs.high], [row - 0.06] * 2, color=color, linewidth=1)
            axes.plot(one.pairs.mean, row - 0.06, "|", color=color, markersize=7)
            axes.plot([one.low, one.high], [row + 0.06] * 2, color=color, linewidth=3, alpha=0.5)
            axes.plot(one.mean, row + 0.06, "o", color=color, markersize=5)
        axes.set(title=name, xlim=(-edge, edge))
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        for row in range(len(arms) - 1):
            axes.axhline(row + 0.5, color="lightgray", linewidth=0.6)
    for rate in rates:
        row_of[0].plot([], [], "o-", color=color_of(rate), label=f"rate {rate}")
    figure.legend(loc="outside upper right", ncols=len(rates), frameon=False)
    figure.supxlabel(
        "top-1 of DRConv less the arm's, points (right of 0: DRConv is better), with 95 % intervals: "
        "thin in the pairs, thick of all seeds"
    )
    return figure


def top1_figure(found: dict[str, Found]) -> Figure:
    """Top-1 of each run, by arm."""
    most = max(4, *map(len, found.values()))
    figure = Figure(figsize=(5.2 * len(found), 0.24 * most + 1), layout="constrained")
    columns = figure.subplots(1, len(found), squeeze=False)[0]
    for (network, arms), axes in zip(found.items(), columns, strict=True):
        for row, runs in enumerate(arms.values()):
            values = [run["top1"] for run in runs]
            axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.6)
            axes.plot(mean(values), row, "|", color="black", markersize=16)
        axes.set_yticks(range(len(arms)), [f"{arm} at {rate}" for arm, rate in arms])
        axes.set_ylim(most - 0.5, -0.5)  # from the top, as in the tables
        axes.set(title=network, xlabel="top-1, % (points: seeds, bar: mean)")
        axes.grid(axis="x", alpha=0.4)
    return figure


def entropy_figure(found: dict[str, Found]) -> Figure | None:
    """Region entropy by layer: of each arm the mean of its seeds, of the default each seed; None without layers."""
    used = {n: {key: runs for key, runs in arms.items() if ARMS[key[0]].num_regions > 1} for n, arms in found.items()}
    used = {network: arms for network, arms in used.items() if arms}
    if not used:
        return None
    most = max(4, *map(len, used.values()))
    height = 0.24 * most + 1
    figure = Figure(figsize=(5.2 * len(used), height + 4), layout="constrained")
    rows = figure.subplots(2, len(used), height_ratios=(height, 4), squeeze=False)
    for (network, arms), upper, lower in zip(used.items(), *rows, strict=True):
        means = [np.mean([list(run["entropy"].values()) for run in runs], axis=0) for runs in arms.values()]
        image = upper.imshow(means, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        upper.set_yticks(range(len(arms)), [f"{arm} at {rate}" for arm, rate in arms])
        upper.set_ylim(most - 0.5, -0.5)
        upper.set(title=network, xlabel="DRConv layer, from input to output")
        for rate, runs in ((rate, runs) for (arm, rate), runs in arms.items() if arm == "drconv"):
            color = color_of(rate)
            lower.plot([], ".-", color=color, label=f"at {rate}, {len(runs)} seeds")
            for run in runs:
                lower.plot(list(run["entropy"].values()), ".-", color=color, alpha=0.7)
        lower.axhline(0.3, color="gray", linestyle="--")
        lower.set(xlabel="DRConv layer, from input to output", ylabel="region entropy / log m, drconv", ylim=(0, 1.02))
        if lower.get_legend_handles_labels()[0]:
            lower.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=3, frameon=False, fontsize="small")
    figure.colorbar(image, ax=rows[0, -1], label="region entropy / log m, mean of the seeds")
    return figure


def report(results: Path) -> None:
    """Writes the tables between the page's markers, and the pictures.

    Raises:
        SystemExit: There are no runs.
    """
    found = found_in(results)
    timed = results / "times.json"
    seconds = json.loads(timed.read_text())["seconds"] if timed.exists() else {}
    lines = [line for network, arms in found.items() for line in table(network, arms, seconds.get(network, {}))]
    ours = differences(found, "drconv", [arm for arm in ARMS if arm != "drconv"])
    of_one_region = differences(found, "m1", ["standard", "widened"])
    lines += ["### Differences", "", *difference_table("drconv", ours)]
    lines += ["### Differences of m = 1, one filter for the whole image", "", *difference_table("m1", of_one_region)]
    page, begin, end = results.with_suffix(".md"), "<!-- tables: begin -->", "<!-- tables: end -->"
    if page.exists() and begin in (text := page.read_text()):
        before, after = text.split(begin)[0], text.split(end)[1]
        page.write_text("\n".join([f"{before}{begin}", "", *lines, f"{end}{after}"]))
    print("\n".join(lines))
    pictures = {
        "learning": top1_figure(found),
        "entropy": entropy_figure(found),
        "differences": differences_figure(ours) if ours else None,
    }
    for name, figure in pictures.items():
        if figure is not None:
            figure.savefig(results / f"{name}.png", dpi=90)
