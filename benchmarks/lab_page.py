"""The page of `ai-lab serve` in headless Chromium: until the table stands, an overlay is drawn, a live row is seen.

    python benchmarks/lab_page.py         # every part
    python benchmarks/lab_page.py table   # some: table, overlay, live
    python benchmarks/lab_page.py picture FOLDER page.png l1 l2  # no measure: the page of a folder, these trials chosen

Needs the package playwright and a chromium on the PATH. Times are of the browser, from asking for the page on: `first`
with a server that has just started, `again` the median of three later openings. Of a long table the page draws the
first 200 rows, and more when one scrolls there. All processes share the machine.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from ai.lab import Trial
from ai.lab.files.metrics_index import Index
from ai.lab.files.metrics_writer import MetricsWriter

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync".split()
)
POINTS = 100_000


@contextmanager
def serving(root: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "ai.lab", "serve", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def until(page: Page, condition: str) -> float:
    """Returns the milliseconds since the page was asked for when `condition` first held."""
    while True:
        at = page.evaluate(f"({condition}) ? performance.now() : 0")
        if at:
            return float(at)


def opened(page: Page, url: str, condition: str) -> float:
    page.goto("about:blank")
    page.goto(url, wait_until="commit")
    return until(page, condition)


def fill(root: Path, count: int) -> None:
    """Makes trials of 100 rows of 10 metrics until there are `count`."""
    template = root / "t0000"
    if not template.exists():
        with Trial(template, config={"lr": 0.1, "net": {"dim": 8}}, system_interval_s=None, capture=False) as trial:
            for step in range(100):
                trial.log(step, {f"metric_{index}": step / 3 for index in range(10)})
    marker = json.loads((template / ".ai-lab").read_text())
    for number in range(1, count):
        folder = root / f"t{number:04d}"
        if not folder.exists():
            shutil.copytree(template, folder)
            (folder / ".ai-lab").write_text(json.dumps({**marker, "id": f"{number:032x}"}))


def table(page: Page, root: Path) -> None:
    print(f"{'table of':14} {'first, ms':>10} {'again, ms':>10}")
    for count in (10, 100, 1000):
        fill(root, count)
        told = f"document.querySelector('#status').textContent === '{count} trials'"
        drawn = f"{told} && document.querySelectorAll('#runs tbody tr').length === {min(count, 200)}"
        with serving(root) as url:
            first = opened(page, url, drawn)
            again = statistics.median(opened(page, url, drawn) for _ in range(3))
        print(f"{count:5} trials {first:12.0f} {again:10.0f}")


def overlay(page: Page, root: Path) -> None:
    values = np.random.default_rng(0).random(POINTS).tolist()
    ids = []
    for number in range(20):
        with Trial(root / f"long{number}", system_interval_s=None, capture=False) as trial:
            ids.append(trial.id)
        writer = MetricsWriter(trial.path / "metrics.jsonl")
        for step, value in enumerate(values):
            writer.write(step, {"loss": value})
        writer.close()
        Index(trial.path / "metrics.jsonl").extend()  # as a run does
    drawn = "document.querySelector('figure[data-key=loss] .plot')?.plot?.data.length === 21"
    with serving(root) as url:
        address = f"{url}#view=Curves&id={','.join(ids)}"
        first = opened(page, address, drawn)
        again = statistics.median(opened(page, address, drawn) for _ in range(3))
    print(f"overlay of 20 trials × {POINTS:,} points: first {first:.0f} ms, again {again:.0f} ms")


def live(page: Page, root: Path) -> None:
    with serving(root) as url, Trial(root / "live", system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 1.0})
        drawn = "document.querySelector('figure[data-key=loss] .plot')?.plot?.data[1][0].length"
        opened(page, f"{url}#view=Curves&id={trial.id}", f"{drawn} === 1")
        delays = []
        for step in range(1, 11):
            time.sleep(0.37)  # at all parts of the page's second
            begun = time.perf_counter()
            trial.log(step, {"loss": 1.0 / step})
            until(page, f"{drawn} === {step + 1}")
            delays.append(time.perf_counter() - begun)
    print(f"a row of a live run is drawn after: median {statistics.median(delays):.2f} s, longest {max(delays):.2f} s")


def picture(page: Page, root: Path, path: Path, names: list[str]) -> None:
    """Saves the page of a folder as a picture, the trials that end in `names` chosen, the pointer on a chart."""
    with serving(root) as url:
        opened(page, f"{url}#view=Curves", "document.querySelectorAll('#runs tbody tr').length > 0")
        page.evaluate("document.querySelector('#clear').click()")
        for name in names:
            page.locator(f'input[aria-label$="/{name}"]').check()
        chart = page.locator("figure[data-key=val_loss] .u-over")
        chart.wait_for()
        page.wait_for_timeout(1500)  # the page has asked again, and nothing is drawn any more
        chart.hover(position={"x": 0.55 * (chart.bounding_box() or {"width": 300})["width"], "y": 80})
        page.locator("figure[data-key=val_loss] .tip:not([hidden])").wait_for()
        page.screenshot(path=path)


if __name__ == "__main__":
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as started, tempfile.TemporaryDirectory() as text:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        parts = {"table": table, "overlay": overlay, "live": live}
        if sys.argv[1:2] == ["picture"]:
            picture(page, Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
            sys.exit()
        for name in sys.argv[1:] or parts:
            root = Path(text) / name
            root.mkdir()
            parts[name](page, root)
        browser.close()
