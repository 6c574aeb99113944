from __future__ import annotations

import base64
import csv
import json
import math
import re
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import stats

from drconv_mm.suite.config import UNITS
from drconv_mm.suite.report import write_report
from drconv_mm.suite.report.numbers import format_number
from drconv_mm.suite.report.plots import DARK, LIGHT, _Ticks, share_plot
from drconv_mm.suite.report.tables import collect
from drconv_mm.suite.results import CSV_COLUMNS
from drconv_mm.suite.statistics import paired_difference

from .example_results import COMMAND, CONVS, TASKS, example_result, example_results, write_run
from .page import Element, read_page, rows_of_runs

AWKWARD = "a<b> & \"c\" 'd' $x$ |*_`]"


def report(folder: Path, results, **changes) -> tuple[Element, str, list[list[str]]]:
    """The page, the Markdown and the rows of the CSV of a report in ``folder/report``."""
    arguments = {"title": "An example", "command": COMMAND, "baseline_conv": "Conv2d", **changes}
    page, text, table = write_report(folder, results, folder / "report", **arguments)
    with table.open(newline="", encoding="utf-8") as file:
        return read_page(page.read_text("utf-8")), text.read_text("utf-8"), list(csv.reader(file))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    results = example_results()
    for result in results:
        write_run(folder, result, pictures=3 if result.seed == 0 else 0)
    conclusions = "First\nline.\n\n- **one**\n- two `<b>`\n- <script>three()</script>\n\nLast."
    return folder, results, *report(folder, results, conclusions=conclusions)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.41234, "", "0.412"),
        (61.939, "%", "61.94"),
        (-0.0004, "", "0.000"),
        (813_000_000, "count", "813 M"),
        (999_600, "count", "1.00 M"),
        (999_400, "count", "999 k"),
        (7, "count", "7"),
        (1_360_000_000, "count", "1.36 G"),
        (1.1e9, "bytes", "1.10 GB"),
        (0.2041, "seconds", "204 ms"),
        (1.5, "seconds", "1.50 s"),
        (12.345, "seconds", "12.3 s"),
        (1.04, "ratio", "\N{MULTIPLICATION SIGN}1.04"),
        (0.0312, "p", "0.031"),
        (0.0001, "p", "< 0.001"),
        (math.nan, "", "\N{EN DASH}"),
        (-math.inf, "", "\N{MINUS SIGN}∞"),
    ],
)
def test_numbers_for_people(value, unit, text):
    assert format_number(value, unit) == text


def test_signs_are_written_where_they_are_asked_for():
    assert format_number(0.02, sign=True) == "+0.020" and format_number(-2, "%", sign=True) == "\N{MINUS SIGN}2.00"
    assert format_number(0.0, sign=True) == "0.000"


def test_ticks_end_without_zeros():
    for unit, values, texts in (
        ("seconds", [0.5, 1, 1.5, 2], ["500 ms", "1 s", "1.5 s", "2 s"]),
        ("count", [6e6, 7.5e6, 10e6, 100e6], ["6 M", "7.5 M", "10 M", "100 M"]),
        ("%", [20, 22.5], ["20.00", "22.50"]),
    ):
        ticks = _Ticks(unit)
        ticks.set_locs(np.array(values))
        assert [ticks(value) for value in values] == texts


def test_every_unit_of_a_metric_can_be_written():
    assert all(format_number(0.5, unit) for unit in UNITS)


def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="unit must be one of .* got 'miles'"):
        format_number(1.0, "miles")


def test_page_holds_the_table_of_runs_to_the_last_digit(example):
    _, results, page, _, rows = example
    assert rows[0] == list(CSV_COLUMNS) and len(rows) == 1 + len(results)
    assert rows_of_runs(page) == rows[1:]
    link = page.one("a", download="results.csv").attributes["href"]
    assert base64.b64decode(link.split(",")[1]).decode().splitlines() == [",".join(row) for row in rows]


def test_what_is_read_is_what_was_measured(example):
    numbers = list(example[2].all(data_value="*", data_unit="*"))
    assert len(numbers) > 400
    for element in numbers:
        value, unit = float(element.attributes["data-value"]), element.attributes["data-unit"]
        assert element.text == format_number(value, unit, sign="data-sign" in element.attributes)


def test_tables_of_tasks_agree_with_the_csv(example):
    _, _, page, _, rows = example
    runs = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    for task in TASKS:
        table = page.one("table", data_task=task)
        for conv in CONVS:
            own = {r["seed"]: r for r in runs if (r["task"], r["conv"]) == (task, conv)}
            base = {r["seed"]: float(r["value"]) for r in runs if (r["task"], r["conv"]) == (task, "Conv2d")}
            row = table.one("tr", data_conv=conv)

            def part(field, name=None, row=row):
                cell = row.one("td", data_field=field)
                found = cell.all("span", data_part=name) if name else cell.all("span", data_value="*")
                return float(next(found).attributes["data-value"])

            values = [float(r["value"]) for r in own.values()]
            assert part("value", "mean") == pytest.approx(statistics.mean(values), rel=1e-12)
            assert part("value", "std") == pytest.approx(statistics.stdev(values), rel=1e-9)
            for field in ("multiply_adds", "parameters", "seconds_per_iteration", "peak_memory_bytes"):
                assert part(field) == pytest.approx(statistics.mean(float(r[field]) for r in own.values()), rel=1e-12)
            if conv != "Conv2d":
                differences = [float(r["value"]) - base[seed] for seed, r in own.items()]
                low, high = stats.t.interval(0.95, 2, statistics.mean(differences), stats.sem(differences))
                assert part("difference", "mean") == pytest.approx(statistics.mean(differences), rel=1e-9)
                assert (part("difference", "low"), part("difference", "high")) == pytest.approx((low, high), rel=1e-9)
                expected = "supported by 3 seeds" if low > 0 or high < 0 else "not supported by 3 seeds"
                assert expected in row.one("td", data_field="difference").text
                assert ("✓" in row.text) == (low > 0)


def test_prose_and_markdown_have_the_differences_of_the_runs(example):
    _, results, page, text, _ = example
    values = {
        conv: {r.seed: r.value for r in results if (r.task, r.conv) == ("cells", conv)}
        for conv in ("Conv2d", "DRConv mixture")
    }
    paired = paired_difference(*values.values())
    mean, low, high = (format_number(value, "", sign=True) for value in (paired.mean, paired.low, paired.high))
    p_value = format_number(paired.p_value, "p")
    assert f"| {mean} ({low} to {high}), {paired.verdict} | {p_value} |" in text
    assert f"DRConv mixture: {mean} (95 % interval {low} to {high}, p" in text
    row = page.one("table", data_task="cells").one("tr", data_conv="DRConv mixture")
    costs = {
        conv: statistics.mean(r.multiply_adds for r in results if (r.task, r.conv) == ("cells", conv))
        for conv in values
    }
    (ratio,) = row.one("td", data_field="multiply_adds").all("span", data_unit="ratio")
    assert float(ratio.attributes["data-value"]) == pytest.approx(costs["DRConv mixture"] / costs["Conv2d"])


def test_baselines_stand_in_the_table(example):
    row = example[2].one("table", data_task="faces").one("tr", data_baseline="raw pixels")
    assert row.one("td", data_field="value").text == "61.94"


def test_page_stands_alone(example):
    folder, _, page, _, _ = example
    text = (folder / "report/report.html").read_text("utf-8")
    assert not re.search(r"https?:|//\w", re.sub(r"base64,[\w+/=]*", "", text))
    assert not list(page.all("script")) and len(text) < 5_000_000
    for element in page.all():
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            assert element.attributes.get(name, "#").startswith(("#", "data:")), element.attributes


def check_access(page: Element) -> None:
    """What a reader with a keyboard or a screen reader needs."""
    assert page.one("html").attributes["lang"] == "en" and page.one("title").text
    for landmark in ("header", "main", "footer", "nav"):
        page.one(landmark)
    levels = [int(e.tag[1]) for e in page.all() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    ids = [e.attributes["id"] for e in page.all(id="*")]
    assert len(ids) == len(set(ids))
    for element in page.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((element.attributes.get(name) or "").split()) <= set(ids)
        if (element.attributes.get("href") or "").startswith("#"):
            assert element.attributes["href"][1:] in ids
        for number in re.findall(r"url\(#(.*?)\)", " ".join(v or "" for v in element.attributes.values())):
            assert number in ids
        if element.tag == "img":
            assert element.attributes["alt"].strip() and int(element.attributes["height"])
        if element.tag == "svg":
            assert element.attributes["role"] == "img" and len(element.attributes["aria-label"]) > 20
        if element.attributes.get("role") == "region":
            assert element.attributes["tabindex"] == "0"
            assert element.attributes.get("aria-labelledby") or element.attributes.get("aria-label")
        if element.tag in ("section", "nav"):
            assert element.attributes.get("aria-labelledby") or element.attributes.get("aria-label")
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes.get("scope") in ("row", "col") for cell in table.all("th"))
        heads = [len(list(row.all("th"))) for part in table.all("thead") for row in part.all("tr")]
        cells = {sum(c.tag in ("th", "td") for c in row.children if isinstance(c, Element)) for row in table.all("tr")}
        assert len(cells) == 1 and (not heads or heads[0] in cells)
    scrolled = sum(len(list(e.all("table"))) for e in page.all("div", role="region"))
    assert scrolled == len(list(page.all("table")))
    skip = next(page.one("body").all("a"))
    assert skip.attributes["href"] == f"#{page.one('main').attributes['id']}"


def test_page_can_be_used_without_eyes_or_mouse(example):
    check_access(example[2])


def test_pictures_are_shown_by_image_with_what_they_say(example):
    images = list(example[2].all("img"))
    assert len(images) == len(TASKS) * len(CONVS) * 2 * 3
    assert images[0].attributes["alt"] == "Ground truth and prediction, Conv2d, seed 0. image 0: nothing to see"
    assert [re.search(r"image (\d)", i.attributes["alt"])[1] for i in images[:8]] == list("00001111")
    assert all(i.attributes["src"].startswith("data:image/jpeg;base64,") for i in images)


def test_conclusions_are_markdown_without_html(example):
    card = next(e for e in example[2].all("div", **{"class": "card"}))
    assert [e.text for e in card.all() if e.tag in ("p", "li")] == [
        "First line.",
        "one",
        "two <b>",
        "<script>three()</script>",
        "Last.",
    ]
    assert [e.text for e in card.all() if e.tag in ("strong", "code", "script")] == ["one", "<b>"]


def test_markdown_shows_files_that_are_there(example):
    folder, results, _, text, _ = example
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {"report.html", "results.csv"} < set(links)
    assert all((folder / "report" / link).is_file() for link in links)
    shown = {link for link in links if link.startswith("figures/")}
    assert shown == {f"figures/{path.name}" for path in (folder / "report/figures").iterdir()}
    mean = statistics.mean(r.value for r in results if (r.task, r.conv) == ("cells", "DRConv mixture"))
    assert f"| DRConv mixture | {mean:.3f} ± " in text and COMMAND in text


def test_figures_beside_the_markdown_need_no_page(example):
    svg = (example[0] / "report/figures/cells_multiply_adds.svg").read_text()
    assert svg.startswith("<?xml") and LIGHT["series-1"] in svg and "var(" not in svg and "metadata" not in svg


def test_same_results_give_the_same_bytes(tmp_path):
    results = example_results(("cells",), ("Conv2d", "DRConv mixture"), 2)
    first, second = ((report(tmp_path / n, results), tmp_path / n / "report")[1] for n in "ab")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_an_earlier_reports_figures_go(tmp_path):
    report(tmp_path, example_results(("cells", "faces"), ("Conv2d",), 1))
    (tmp_path / "report/figures/notes.txt").write_text("mine")
    report(tmp_path, example_results(("cells",), ("Conv2d",), 1))
    names = {path.name for path in (tmp_path / "report/figures").iterdir()}
    assert "notes.txt" in names and not any(name.startswith("faces") for name in names)


def test_one_seed_claims_nothing(tmp_path):
    page, text, _ = report(tmp_path, example_results(("cells",), seeds=1))
    check_access(page)
    assert text.count("not supported by 1 seed") >= 3 and "One seed supports no difference to Conv2d." in text
    rows = page.one("table", data_task="cells").one("tbody").text
    assert "±" not in rows and "p =" not in rows
    assert not list(page.all("span", data_part="low"))
    svg = (tmp_path / "report/figures/cells_difference.svg").read_text()
    assert f"fill: {LIGHT['paper']}; stroke: {LIGHT['series-1']}" in svg  # hollow


def test_one_conv_has_nothing_to_compare(tmp_path):
    page, text, _ = report(tmp_path, example_results(("cells",), ("Conv2d",)))
    check_access(page)
    assert "Nothing to compare Conv2d with." in text and not list(page.all("td", data_part="mean"))


def test_without_the_baseline_conv_numbers_stand_alone(tmp_path):
    page, text, _ = report(tmp_path, example_results(("cells",), ("DRConv mixture", "wider Conv2d")))
    check_access(page)
    assert "No run of Conv2d to compare with." in text and "DRConv mixture: AP 0." in text


def test_missing_runs_are_named_with_what_is_known(tmp_path):
    results = [r for r in example_results(("cells",)) if r.conv != "DRConv pooled" or r.seed == 0]
    failed = tmp_path / "runs/cells/DRConv pooled/1"
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text(
        json.dumps({"error": "train ended with exit code 1", "last_lines": ["a<b", "c"]})
    )
    broken = tmp_path / "runs/cells/DRConv pooled/2"
    broken.mkdir(parents=True)
    (broken / "failed.json").write_text("[")
    page, text, _ = report(tmp_path, results)
    check_access(page)
    done = page.one("strong", data_done="*")
    assert done.text == "10 of 12" and "10 of 12 runs done" in text
    first, second = page.one("table", data_unfinished="*").one("tbody").all("tr")
    assert "cells" in first.text and "failed: train ended with exit code 1" in first.text
    assert first.one("pre").text == "a<b c" and "failed.json cannot be read" in second.text
    assert "1 of 3 seeds" in page.one("table", data_task="cells").one("tr", data_conv="DRConv pooled").text
    assert text.count("DRConv pooled, seed") == 2


def test_planned_runs_that_nothing_is_known_of_are_missing(tmp_path):
    results = example_results(("cells",), ("Conv2d",), 1)
    page, text, _ = report(tmp_path, results, planned=[("cells", "Conv2d", 0), ("faces", "Conv2d", 0)])
    assert page.one("strong", data_done="*").text == "1 of 2"
    assert "- faces, Conv2d, seed 0: not run, or not finished" in text


def test_names_are_text_whatever_they_hold(tmp_path):
    results = [
        replace(r, task_title=AWKWARD, conv=r.conv if r.conv == "Conv2d" else AWKWARD, environment={AWKWARD: AWKWARD})
        for r in example_results(("cells",), ("Conv2d", "DRConv mixture"), 2)
    ]
    results = [replace(r, regions={AWKWARD: {"num_regions": 2, "shares": [0.5, 0.5]}}) for r in results]
    for result in results:
        write_run(tmp_path, result, pictures=1)
    page, text, rows = report(tmp_path, results, title=AWKWARD, command=AWKWARD)
    check_access(page)
    assert rows_of_runs(page) == rows[1:] and rows[-1][1] == AWKWARD
    assert page.one("h1").text == AWKWARD and page.one("title").text == AWKWARD
    assert page.one("table", data_task="cells").one("tr", data_conv=AWKWARD)
    assert any(AWKWARD in image.attributes["alt"] for image in page.all("img"))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<|]b>|(?<!\\)`", prose)
    for link in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (tmp_path / "report" / link).is_file()


def test_lower_can_be_better(tmp_path):
    results = [
        replace(
            r,
            metric={**r.metric, "higher_is_better": False},
            value=1.0 + r.seed + (r.conv != "Conv2d") * (0.5 + r.seed / 100),
        )
        for r in example_results(("cells",), ("Conv2d", "DRConv mixture"))
    ]
    page, text, _ = report(tmp_path, results)
    assert "DRConv mixture did worse than Conv2d, supported by 3 seeds." in text
    assert "✗ worse, higher, supported" in page.one("tr", data_conv="DRConv mixture").text
    svg = (tmp_path / "report/figures/cells_difference.svg").read_text()
    assert f"fill: {LIGHT['series-1']}; stroke: {LIGHT['series-1']}" in svg  # filled


def content(tmp_path: Path, results):
    return collect(tmp_path, results, None, title="", command="", conclusions=None, baseline_conv="Conv2d")


def test_where_when_and_how_long(tmp_path):
    """The environment of most runs comes first."""
    facts = (("a", "2000-01-02"), ("b", "2000-01-03"), ("b", "2000-01-01"))
    found = content(
        tmp_path,
        [
            example_result(seed=seed, seconds=5400.0, environment={"cpu": cpu}, finished=f"{day}T00:00:00+00:00")
            for seed, (cpu, day) in enumerate(facts)
        ],
    )
    assert found.environments == [
        ({"cpu": "b"}, "2 runs (cells: Conv2d seed 1, 2)"),
        ({"cpu": "a"}, "1 run (cells: Conv2d seed 0)"),
    ]
    assert (found.dates, found.total_time) == ("2000-01-01 to 2000-01-03", "4 h 30 min")


def test_region_shares_are_means_by_rank_drawn_the_largest_first(tmp_path):
    results = [
        example_result(conv="DRConv mixture", seed=seed, regions={"conv": {"num_regions": 3, "shares": shares}})
        for seed, shares in enumerate(([0.2, 0.5, 0.3], [0.7, 0.1, 0.2]))
    ]
    (task,) = content(tmp_path, results).tasks
    assert task.rows[0].layers[0].shares == pytest.approx([0.6, 0.25, 0.15])
    svg = share_plot(task, task.rows[0]).svg
    bars = re.findall(r'<path d="M ([\d.]+) [^"]*L ([\d.]+) [\d.]+ \nz', svg.split("PolyCollection")[1])
    edges = [(float(left), float(right)) for left, right in bars]
    whole = edges[-1][1] - edges[0][0]
    assert [(right - left) / whole for left, right in edges] == pytest.approx([0.6, 0.25, 0.15], rel=1e-4)


def test_a_diverged_run_is_a_result(tmp_path):
    results = example_results(("cells",), ("Conv2d", "DRConv mixture"), 2)
    results[-1] = replace(results[-1], value=math.nan, curves={"loss": [[10, 2.0], [20, math.nan]], "metric": []})
    page, text, rows = report(tmp_path, results)
    check_access(page)
    assert rows[-1][4] == "nan" and rows_of_runs(page) == rows[1:]
    assert "not finite" in text


def test_curves_may_be_missing_or_uneven(tmp_path):
    results = example_results(("cells",), ("Conv2d", "DRConv mixture"), 2)
    empty = [replace(r, curves={"loss": [], "metric": []}, regions={}) for r in results]
    page, _, _ = report(tmp_path / "a", empty)
    check_access(page)
    assert "Training" not in [e.text for e in page.all("h3")]
    shifted = [
        replace(r, curves={"loss": [[s + r.seed, v] for s, v in r.curves["loss"]], "metric": []}) for r in results
    ]
    check_access(report(tmp_path / "b", shifted)[0])


def test_many_conv_types_and_layers(tmp_path):
    convs = tuple(f"conv type number {i} with a long name" for i in range(9))
    results = [
        replace(r, regions={f"backbone.layer.{i}": {"num_regions": 12, "shares": [1 / 12] * 12} for i in range(70)})
        if r.conv == convs[-1]
        else r
        for r in example_results(("cells",), convs, 1)
    ]
    check_access(report(tmp_path, results, baseline_conv=convs[0])[0])


def test_page_stays_small_however_many_pictures(tmp_path):
    results = example_results(("cells",), ("Conv2d",), 1)
    folder = write_run(tmp_path, results[0]) / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    entries = [{"file": f"{i}.jpg", "caption": "noise", "kind": "predictions"} for i in range(30)]
    for entry in entries:
        (folder / entry["file"]).write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())
    (folder / "pictures.json").write_text(json.dumps(entries))
    page, text, _ = report(tmp_path, results)
    shown = len(list(page.all("img")))
    assert 5 < shown < 30 and f"{30 - shown} more pictures" in text
    assert (tmp_path / "report/report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("damage", ["list", "picture", "away"])
def test_damaged_pictures_are_left_out(tmp_path, damage):
    results = example_results(("cells",), ("Conv2d",), 1)
    folder = write_run(tmp_path, results[0], pictures=2) / "pictures"
    if damage == "list":
        (folder / "pictures.json").write_text("{")
    elif damage == "picture":
        (folder / "predictions_0.png").write_bytes(b"no picture")
    else:
        (tmp_path / "secret.png").write_bytes((folder / "predictions_0.png").read_bytes())
        entries = [{"file": "../../../../../secret.png", "caption": "", "kind": "predictions"}]
        (folder / "pictures.json").write_text(json.dumps(entries))
    page, _, _ = report(tmp_path, results)
    assert len(list(page.all("img"))) == {"list": 0, "picture": 3, "away": 0}[damage]


def test_results_that_make_no_report(tmp_path):
    with pytest.raises(ValueError, match="at least one finished run, got none"):
        report(tmp_path, [])
    one = example_result()
    with pytest.raises(ValueError, match="holds task 'cells', conv 'Conv2d', seed 0 twice"):
        report(tmp_path, [one, one])
    with pytest.raises(ValueError, match="task 'cells' has results of two metrics"):
        report(tmp_path, [one, replace(one, seed=1, metric={**one.metric, "name": "other"})])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(palette):
    def luminance(color):
        channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    for role, color in palette.items():
        lighter, darker = sorted((luminance(color), luminance(palette["paper"])), reverse=True)
        least = {"ink": 7, "quiet": 4.5, "paper": 1, "rule": 1}.get(role, 3)  # WCAG 2: text 4.5, graphics 3
        assert (lighter + 0.05) / (darker + 0.05) >= least, role
