from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

import cv2
import numpy as np
import pytest

from drconv_mm.suite.report import write_report
from drconv_mm.suite.report.numbers import COLUMN_UNITS, format_number

from .example_results import COMMAND, example_results, write_run
from .page import read_page, rows_of_runs

BROWSER = os.environ.get("DRCONV_MM_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, google-chrome or chromium-browser on PATH; name one in DRCONV_MM_CHROMIUM"
)
# The page in a frame as wide as a phone, for a browser's own window is wider; it tells its parent what it measured.
PROBE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  paper: getComputedStyle(document.querySelector("figure")).backgroundColor}), "*"))</script></body>"""
# innerText is what is laid out: empty where nothing is shown.
SEEN = """<script>addEventListener("load", () => { const p = document.createElement("p"); p.id = "seen";
p.textContent = JSON.stringify({
  cells: [...document.querySelectorAll("table[data-task] tr[data-conv] td[data-field]")].map(c => [
    c.closest("table").dataset.task, c.parentNode.dataset.conv, c.dataset.field, c.innerText.replace(/\\s+/g, " ")]),
  cards: [...document.querySelectorAll("li.card")].map(c => c.innerText)});
document.body.append(p) })</script></body>"""
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe src="{page}" width="{width}" height="{height}" style="border:0">
</iframe><script>onmessage = e => {{ const p = document.createElement("p"); p.id = "found"; p.textContent = e.data;
document.body.append(p) }}</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    results = example_results(("cells", "faces"))
    for result in results:
        write_run(folder, result, pictures=2 if result.seed == 0 else 0)
    write_report(folder, results, folder, title="An example", command=COMMAND, baseline_conv="Conv2d")
    return folder


def browse(page: Path, profile: Path, *arguments: str) -> str:
    """What Chromium prints of a page."""
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--virtual-time-budget=20000", *arguments,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_numbers_that_the_browser_shows_are_those_of_the_csv(folder, tmp_path):
    """What a reader sees of the tables and cards: text that is laid out, not what the file says."""
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text().replace("</body>", SEEN))
    seen = json.loads(read_page(browse(page, tmp_path / "profile", "--dump-dom")).one("p", id="seen").text)
    with (folder / "results.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        row = found.setdefault((run["task"], run["conv"]), {})
        for name in ("value", "multiply_adds", "parameters", "seconds_per_iteration", "peak_memory_bytes"):
            row.setdefault(name, []).append(float(run[name]))
    assert {(task, conv) for task, conv, _, _ in seen["cells"]} == found.keys() and len(found) == 2 * 4
    units = {"cells": "", "faces": "%"}
    for task, conv, field, text in seen["cells"]:
        if field in found[task, conv]:
            values = found[task, conv][field]
            unit = units[task] if field == "value" else COLUMN_UNITS[field]
            assert text.startswith(format_number(mean(values), unit)), (task, conv, field, text)
            if field == "value":
                assert f"± {format_number(stdev(values), unit)}" in text and "3 of 3 seeds" in text
        else:
            assert field == "difference"
            base = found[task, "Conv2d"]["value"]
            difference = mean(b - a for a, b in zip(base, found[task, conv]["value"], strict=True))
            assert conv == "Conv2d" or text.startswith(format_number(difference, units[task], sign=True))
    for task, unit in units.items():
        value = format_number(mean(found[task, "Conv2d"]["value"]), unit)
        assert sum("Conv2d: " in text and value in text for text in seen["cards"]) == 1


def test_numbers_of_all_runs_are_those_of_the_csv(folder, tmp_path):
    page = read_page(browse(folder / "report.html", tmp_path, "--dump-dom"))
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows_of_runs(page) == rows[1:] and len(rows) == 1 + 2 * 4 * 3
    for cell in page.one("table", data_runs="*").all("td", data_unit="*"):
        assert cell.text == format_number(float(cell.attributes["data-value"]), cell.attributes["data-unit"])
    assert len(list(page.all("svg"))) > 10 and len(list(page.all("img"))) == 2 * 4 * 2 * 2


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_a_phone_and_a_desk_by_day_and_by_night(folder, tmp_path, width, scheme):
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text((folder / "report.html").read_text().replace("</body>", PROBE))
    outer.write_text(FRAME.format(page=inner.name, width=width, height=1600))
    arguments = ["--window-size=1300,1600", f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    found = json.loads(
        read_page(browse(outer, tmp_path / "profile", "--dump-dom", *arguments)).one("p", id="found").text
    )
    assert found["inner"] == width and found["scroll"] <= width
    assert found["dark"] == (scheme == "dark")
    assert found["paper"] == {"dark": "rgb(23, 28, 35)", "light": "rgb(255, 255, 255)"}[scheme]

    shot = tmp_path / "shot.png"
    browse(outer, tmp_path / "profile", f"--screenshot={shot}", *arguments)
    picture = cv2.imread(str(shot))[:, :width]
    assert picture.shape == (1600, width, 3)
    # Paper, ink and colours: neither blank nor of the other scheme.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200 and picture.std() > 10
    assert (np.median(picture) < 60) if scheme == "dark" else (np.median(picture) > 200)
