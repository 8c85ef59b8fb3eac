"""The page in headless Chromium: every view on real trials, hostile and live ones, and no request leaves loopback."""

import contextlib
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import pytest
import torch
from PIL import Image

from ai.lab import Audio, Confusion, Experiment, Histogram, PrecisionRecall, Rows, Trial, Video
from ai.lab.page.publish import publish
from ai.lab.report.table import Spread
from tests.chromium import NEEDED

pytestmark = NEEDED

VIEWS = ("Curves", "Samples", "Media", "Config", "Code", "System", "Search", "Log")
HOSTILE = "<img src=x onerror=alert(1)>"
SCRIPT = "<script>document.title='hacked'</script>"
SERIOUS = ("serious", "critical")
AXE = find_spec("axe_playwright_python")
WAIT_MS = 120_000
FILLED = "document.querySelector('figure').offsetWidth / document.querySelector('.charts').offsetWidth"
HURRY = "const later = setTimeout; globalThis.setTimeout = (what, ms) => later(what, ms / 8)"
"""The page asks its server once a second; here it needs not wait so long."""


@contextlib.contextmanager
def serving(root: Path, token: str | None = None) -> Iterator[str]:
    import uvicorn

    from ai.lab.page.server import make_app

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(root, token=token), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture
def serve():
    """Starts servers that outlive the pages which ask them."""
    with contextlib.ExitStack() as stack:
        yield lambda root, **how: stack.enter_context(serving(root, **how))


@pytest.fixture
def look(browser, serve):
    """Opens the page of a server; afterwards nothing may have gone wrong in it or have been asked of another host."""
    contexts, wrong, asked = [], [], []

    def open_page(url: str, fragment: str = "", **how):
        context = browser.new_context(viewport={"width": 1360, "height": 900}, **how)
        contexts.append(context)
        context.add_init_script(HURRY)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: wrong.append(f"error: {error.stack}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda said: said.type == "error" and wrong.append(f"console: {said.text}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + "/" + fragment)
        page.wait_for_selector("#view[data-drawn]")
        return page

    open_page.wrong = wrong
    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert asked
    assert {urlsplit(url).hostname for url in asked} == {"127.0.0.1"}


def record(path: Path, lr: float, steps: int = 200) -> Trial:
    how = {"config": {"lr": lr, "net": {"dim": 8}}, "system_interval_s": 0.01}
    with Trial(path, **how) as trial:
        print(f"the rate is {lr}")
        for step in range(steps):
            trial.log(step, {"loss": lr + 1 / (step + 1), **({"val_loss": lr} if step % 50 == 0 else {})})
        for step in (50, 100):
            trial.save_sample(step, torch.full((4, 1, 8, 8), lr))
        while not trial.record.system():
            trial._writer._session._system._stop.wait(0.01)
    return trial


def tell_diff(trial: Trial, diff: str, untracked: list[str]) -> None:
    meta = trial.record.meta
    meta["sessions"][-1]["git"] = {"commit": "0123456789abcdef", "branch": "main", "diff": diff, "untracked": untracked}
    (trial.path / "meta.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    diff = "diff --git a/net.py b/net.py\n--- a/net.py\n+++ b/net.py\n@@ -1 +1 @@\n-dim = 4\n+dim = 8\n"
    for name, lr in (("study/a", 0.1), ("study/b", 0.2)):
        tell_diff(record(root / name, lr), diff, ["notes.txt"])

    def objective(trial) -> float:
        return trial.hp.log("rate", 1e-4, 1) + trial.hp.lst("width", [8, 16])

    Experiment(root / "search", search="random").run(6, objective, progress=False)
    return root


@pytest.fixture(scope="module")
def url(root):
    with serving(root) as url:
        yield url


def select(page, *names: str) -> None:
    for name in names:
        page.locator(f'input[aria-label="Select {name}"]').check()


def open_view(page, name: str) -> str:
    page.evaluate("delete document.querySelector('#view').dataset.drawn")
    page.click(f"#tab-{name}")
    page.wait_for_selector(f'#view[data-drawn="{name}"]')
    assert page.get_attribute(f"#tab-{name}", "aria-selected") == "true"
    return page.inner_text("#view")


def until(page, condition: str) -> None:
    """Waits for a condition; the page's own rules forbid Playwright's waiting, which runs text as code in it."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        page.wait_for_timeout(30)


def points(page, key: str) -> list[int]:
    """How many points each curve of a chart has, once it is drawn."""
    page.wait_for_selector(f'figure[data-key="{key}"] canvas')
    return page.evaluate(
        "key => document.querySelector(`figure[data-key='${key}'] .plot`).plot.data.slice(1).map(one => one[0].length)",
        key,
    )


def test_every_view_shows_the_selected_trials(look, url):
    page = look(url, "#view=Curves")
    for scheme, expected in {"dark": "rgb(20, 23, 26)", "light": "rgb(255, 255, 255)"}.items():
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected
    assert "Select trials above" in page.inner_text("#view")
    select(page, "study/a", "study/b")
    assert points(page, "loss") == [200, 200]
    assert points(page, "val_loss") == [4, 4]
    text = open_view(page, "Samples")
    assert "step 100 (2 of 2)" in text
    page.press("#step", "ArrowLeft")
    until(page, "[...document.images].every(one => one.src.endsWith('/sample/50') && one.naturalWidth > 0)")
    assert page.locator("#view img").count() == 2
    text = open_view(page, "Config")
    assert page.locator("td.differs").all_inner_texts()[:2] == ["0.1", "0.2"]
    assert "net.dim" in text
    page.get_by_label("Only what differs").check()
    until(page, "!document.querySelector('#view').innerText.includes('net.dim')")
    page.get_by_label("Only what differs").uncheck()
    text = open_view(page, "Code")
    assert text.count("0123456789") == 1  # the same code is told once
    assert "+dim = 8" in text
    assert "1 untracked file" in text
    open_view(page, "System")
    assert min(points(page, "memory_process_bytes")) >= 1
    text = open_view(page, "Search")
    assert "6 scored trials" in text
    assert page.locator("svg path.run").count() == 6
    assert page.locator("svg circle").count() == 12
    text = open_view(page, "Log")
    assert "the rate is 0.1" in text
    assert "the rate is 0.2" in text
    page.locator("#tab-Search").click()
    page.locator("svg circle").first.click()
    until(page, "document.querySelectorAll('tr[aria-selected=true]').length === 1")


def test_the_table_sorts_filters_and_hides_columns_from_the_keyboard(look, url):
    page = look(url)
    names = "[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[1].innerText)"
    page.focus('[data-column="config lr"]')
    page.keyboard.press("Enter")
    assert page.evaluate(names)[:2] == ["study/b", "study/a"]
    page.keyboard.press("Enter")
    assert page.evaluate(names)[:2] == ["study/a", "study/b"]
    page.keyboard.press("/")
    page.keyboard.type("study lr<0.15")
    assert page.evaluate(names) == ["study/a"]
    assert page.inner_text("#status") == "1 of 8 trials"
    page.keyboard.press("Escape")
    assert len(page.evaluate(names)) == 8
    page.click("#columns summary")
    page.get_by_label("config lr", exact=True).uncheck()
    assert page.locator('[data-column="config lr"]').count() == 0
    page.get_by_label("Select all shown").check()
    until(page, "document.querySelectorAll('tr[aria-selected=true]').length === 8")
    page.click("#clear")
    until(page, "document.querySelectorAll('tr[aria-selected=true]').length === 0")
    page.focus("#tab-Curves")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-Log"


def test_a_long_table_is_drawn_as_far_as_it_is_looked_at(look, serve, tmp_path):
    with Trial(tmp_path / "t000", system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 1.0})
    marker, meta = (json.loads((trial.path / name).read_text()) for name in (".ai-lab", "meta.json"))
    for number in range(1, 210):
        folder = tmp_path / f"t{number:03d}"
        folder.mkdir()
        (folder / ".ai-lab").write_text(json.dumps({**marker, "id": f"{number:032x}"}))
        (folder / "meta.json").write_text(json.dumps(meta))
    count = "document.querySelectorAll('#runs tbody tr').length"
    url = serve(tmp_path)
    page = look(url)
    assert page.inner_text("#status") == "210 trials"
    assert page.evaluate(count) == 200
    page.evaluate("document.querySelector('#runs').scrollTo(0, 1e9)")
    until(page, f"{count} === 210")
    page.fill("#filter", "t209")
    until(page, f"{count} === 1")
    page = look(url, f"#view=Log&id={205:032x}")
    assert page.locator("#runs tr[aria-selected=true]").inner_text().split()[0] == "t205"


def test_curves_are_smoothed_scaled_and_looked_at_closely(look, url, root):
    page = look(url)
    page.click("#clear")
    select(page, "study/a")
    assert points(page, "loss") == [200]
    page.get_by_label("Smoothing").fill("0.9")
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.series.length === 3")
    page.get_by_label("Smoothing").fill("0")
    page.get_by_label("Logarithmic").check()
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.scales.y.distr === 3")
    page.get_by_label("Logarithmic").uncheck()
    page.get_by_label("Over", exact=True).select_option("time")
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.axes[0].label === 'time'")
    page.get_by_label("Over", exact=True).select_option("step")
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.axes[0].label === 'step'")
    box = page.locator("figure[data-key=loss] .u-over").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    page.wait_for_selector("figure[data-key=loss] .tip:not([hidden])")
    assert "study/a" in page.inner_text("figure[data-key=loss] .tip")
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], middle, steps=4)
    page.mouse.up()
    whole = page.locator("figure[data-key=loss] button.whole")
    whole.wait_for()
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.data[1][0].length < 120")
    assert points(page, "val_loss") == [4]
    whole.click()
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.data[1][0].length === 200")
    page.get_by_label("Filter metrics").fill("val")
    until(page, "document.querySelectorAll('figure').length === 1")
    identity = page.get_attribute('input[aria-label="Select study/a"]', "data-id")
    assert identity in page.url  # the address tells what is looked at
    assert points(look(url, f"#view=Curves&id={identity}"), "loss") == [200]


def test_a_live_trial_is_followed_and_a_lost_server_is_told(look, serve, tmp_path):
    url = serve(tmp_path)
    page = look(url)
    assert "No trials here yet" in page.inner_text("#view")
    with Trial(tmp_path / "live", system_interval_s=None) as trial:
        trial.log(0, {"loss": 2.0})
        select(page, "live")
        page.wait_for_selector("figure[data-key=loss] canvas")
        page.wait_for_selector("#runs .running")
        assert page.evaluate(FILLED) > 0.95  # a lone chart has all the room
        asked: list[str] = []
        page.on("request", lambda request: "api/curves" in request.url and asked.append(request.url))
        for step in range(1, 6):
            trial.log(step, {"loss": 2.0 / step, "late": 1.0})
        until(page, "document.querySelector('figure[data-key=loss] .plot').plot.data[1][0].length === 6")
        drawn = "document.querySelector('figure[data-key=loss] .plot').plot.data[1]"
        assert page.evaluate(drawn) == [[0, 1, 2, 3, 4, 5], [2.0, *(2.0 / step for step in range(1, 6))]]
        assert re.search(r"have=\w{8}\.1(%2C|$)", asked[0])  # of the point that was there no more is sent
        page.wait_for_selector("figure[data-key=late] canvas")
        held = []
        page.route("**/api/curves*", lambda route: route.continue_() if held else held.append(route))
        asked.clear()
        for step in range(6, 9):
            trial.log(step, {"loss": 1.0, "late": 1.0})
            with page.expect_response("**/api/trials*"):
                pass
        until(page, "document.querySelector('#runs tbody').innerText.includes('8')")
        assert len(asked) == 1  # a slow answer is waited for, not asked for again and again
        held[0].abort()  # and one that is lost is made up for
        until(page, "document.querySelector('figure[data-key=loss] .plot')?.plot?.data[1][0].length === 9")
        open_view(page, "Log")
        print("a word from the run")
        until(page, "document.querySelector('pre.log').innerText.includes('a word from the run')")
    page.wait_for_selector("#runs .finished")
    page.route("**/api/trials*", lambda route: route.abort())
    page.wait_for_selector("body[data-lost]")
    page.unroute("**/api/trials*")
    page.wait_for_selector("body:not([data-lost])")
    assert all("ERR_" in one for one in look.wrong)  # the cut line, and nothing else
    look.wrong.clear()


def test_hostile_names_and_values_neither_run_nor_break_the_page(look, serve, tmp_path):
    def objective(trial) -> float:
        return float(len(trial.hp.lst(SCRIPT, [HOSTILE, "../../etc/passwd"]))) + trial.hp.lin("x", 0, 1)

    Experiment(tmp_path / HOSTILE, search="random").run(2, objective, progress=False)
    config = {SCRIPT: "x" * 1_000_000, "../": HOSTILE, "n": float("nan"), "__proto__": 1, "constructor": 2}
    name = f"a..{HOSTILE}'\"`$(id)"
    with Trial(tmp_path / name, config=config, system_interval_s=None) as trial:
        trial.log(0, {HOSTILE: float("nan"), "inf": float("inf"), "__proto__": 1.0, "one": 1e300})
        trial.log(1, {HOSTILE: 1.0, "inf": float("-inf"), "toString": 2.0, "one": -1e300})
        trial.save_sample(1, torch.full((1, 3, 2, 2), float("nan")))
    (trial.path / "log.txt").write_text(f"{HOSTILE} \x1b[31m \0" + SCRIPT * 10_000)
    tell_diff(trial, f"diff --git a/{HOSTILE} b/{HOSTILE}\n+{SCRIPT}\n" + "+x\n" * 6_000, [HOSTILE])
    url = serve(tmp_path)
    page = look(url, "#view=__proto__&id=../../x")
    page.wait_for_selector("#runs tbody tr")
    page.get_by_label("Select all shown").check()
    for view in VIEWS:
        open_view(page, view)
        assert page.title() == "ai.lab"
        assert page.locator("script").count() == 2
        assert page.locator("img:not([src^='api/trial/'])").count() == 0
        assert page.locator("#view script, #view img[onerror]").count() == 0
        if view == "Curves":
            assert sorted(page.locator("figure").evaluate_all("all => all.map(one => one.dataset.key)")) == sorted(
                [HOSTILE, "__proto__", "inf", "one", "toString"]
            )
    assert HOSTILE in page.inner_text("#runs")
    page.fill("#filter", "[(*+?\\")
    assert page.locator("#runs tbody tr").count() == 0
    status = page.evaluate("fetch('/..%2f..%2fetc%2fpasswd').then(answer => answer.status)")
    assert status == 404
    deadline = time.monotonic() + WAIT_MS / 1000
    while not look.wrong:  # the browser says so too, in its own time
        assert time.monotonic() < deadline
        page.wait_for_timeout(30)
    (said,) = look.wrong
    assert "404" in said
    look.wrong.clear()


def test_the_search_shows_what_was_chosen_and_no_pruned_trial_as_the_best(look, serve, tmp_path):
    def objective(trial) -> float:
        norm = trial.hp.lst("norm", [None, "batch"])
        momentum = trial.hp.lin("momentum", 0.5, 1) if norm else 0.0
        if trial.number == 3:
            trial.pruned = True  # with the smallest score of all
            return -9.0
        return trial.number + momentum

    search = Experiment(tmp_path / "search", search=lambda seed: optuna.samplers.RandomSampler(seed))
    for norm in (None, "batch", None, None):
        search.study.enqueue_trial({"norm": norm})
    search.run(4, objective, progress=False)
    page = look(serve(tmp_path))
    page.wait_for_selector("#runs tbody tr")
    text = open_view(page, "Search")
    assert "3 scored trials; best (min) 0 by 00000 norm None" in text
    assert page.locator("svg path.run").count() == 3
    figures = page.locator("#view .charts figure")
    told = {one.locator("figcaption").inner_text(): one.locator("circle").count() for one in figures.all()[1:]}
    assert "8 scored trials are needed, there are 3" in figures.first.inner_text()
    assert told == {"Score against norm": 3, "Score against momentum": 1}
    assert "NaN" not in page.inner_html("#view")


def test_what_was_kept_is_shown_by_name_and_step(look, serve, tmp_path):
    with Trial(tmp_path / "t", system_interval_s=None) as trial:
        trial.log(0, {"loss": 1.0})
        for step in (0, 9):
            trial.keep(step, "weights", Histogram([0.0, 1.0, float(step)], bins=4))
            trial.keep(step, "cases", Rows([SCRIPT], [[HOSTILE], [step]]))
        trial.keep(9, "photo", torch.zeros(3, 4, 4))
        trial.keep(9, "who", Confusion([0, 0, 1], [0, 1, 1], names=["cat", HOSTILE]))
        trial.keep(9, "price", PrecisionRecall([0, 1, 1], [0.1, 0.9, 0.8]))
        trial.keep(9, "voice", Audio(torch.zeros(800), 8000))
        trial.keep(9, "game", Video(torch.zeros(3, 8, 8)))
        trial.keep(0, "said", HOSTILE)
        for name, damaged in {"own": '{"kind": "toString"}', "torn": '{"kind"', "odd": '{"kind": "table"}'}.items():
            (trial.path / "media" / "000000000" / f"{name}.json").write_text(damaged)
    page = look(serve(tmp_path))
    page.wait_for_selector("#runs tbody tr")
    text = open_view(page, "Media")
    page.wait_for_selector("img[alt='photo of t at step 9']")
    assert page.locator("section[aria-label=weights] path.bar").count() == 4
    assert HOSTILE in page.inner_text("section[aria-label=said] pre")
    assert page.locator("section[aria-label=cases] td").all_inner_texts() == [HOSTILE, "9"]
    assert "step 9 (2 of 2)" in text
    assert '"kind": "toString"' in page.inner_text("section[aria-label=own] pre")
    assert page.locator("section .problem").count() == 2  # the torn one and the odd one, and all others are shown
    cells = page.locator("section[aria-label=who] td").all_inner_texts()
    assert (cells, "2 of 3 right, 66.667 %" in text) == (["1", "1", "", "1"], True)
    assert page.locator("section[aria-label=price] path.run").count() == 1
    assert "positive 1" in page.inner_text("section[aria-label=price]")
    until(page, "document.querySelector('audio').duration === 0.1")
    until(page, "document.querySelector('section[aria-label=game] img').naturalWidth === 8")
    page.locator("input[aria-label=Step]").fill("0")
    until(page, "document.querySelector('section[aria-label=cases] tbody').innerText.endsWith('0')")
    assert page.locator("section[aria-label=photo] figure").count() == 0
    until(page, "document.querySelectorAll('#view img').length === 0")


def test_a_published_study_opens_from_its_folder_without_a_server(browser, tmp_path):
    record(tmp_path / "study" / "a", 0.1)
    record(tmp_path / "study" / HOSTILE.replace("/", ""), 0.2)
    with Trial(tmp_path / "study" / "a2", config={"lr": 0.3, "__proto__": SCRIPT}, capture=False) as trial:
        trial.log(0, {"loss": 1.0, SCRIPT: 2.0})
        trial.keep(5, "weights", Histogram([1.0, 2.0, 3.0], bins=2))
        trial.keep(5, "answer", SCRIPT)
        trial.keep(5, "photo", torch.zeros(1, 3, 8, 8))
    assert publish(tmp_path / "study", tmp_path / "out") == 3
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(error.stack))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "out" / "index.html").as_uri())
    page.wait_for_selector("#view[data-drawn]")
    page.click("thead input")
    page.wait_for_function("document.querySelectorAll('#view figure canvas').length >= 3")
    shown = {}
    for view in VIEWS:
        page.click(f"#tab-{view}")
        page.wait_for_selector(f"#view[data-drawn={view}]")
        shown[view] = page.inner_text("#view")
    assert "the rate is 0.1" in shown["Log"]
    assert SCRIPT in shown["Media"]
    page.click("#tab-Samples")
    page.wait_for_function("[...document.querySelectorAll('#view img')].every(one => one.naturalWidth > 0)")
    page.click("#tab-Media")
    page.wait_for_selector("#view img")
    page.wait_for_function("[...document.querySelectorAll('#view img')].every(one => one.naturalWidth > 0)")
    assert page.title() == "ai.lab"
    context.close()
    assert wrong == []
    assert all(url.startswith((tmp_path / "out").as_uri()) for url in asked)


def test_a_log_has_a_terminals_colours_and_is_asked_for_once_when_its_run_has_ended(look, serve, tmp_path):
    with Trial(tmp_path / "ended", system_interval_s=None) as ended:
        print("\x1b[1;31mred <b>\x1b[0m plain \x1b[2K\x1b[38;5;200mpink\x1b[39m\x1b[32mgreen\x1b[m end")
        ended.log(0, {"loss": 1.0})
    with Trial(tmp_path / "live", system_interval_s=None) as live:
        live.log(0, {"loss": 1.0})
        page = look(serve(tmp_path), f"#view=Log&id={ended.id},{live.id}")
        page.wait_for_selector("pre .ansi-1.bold")
        assert page.inner_text("pre .ansi-1.bold") == "red <b>"
        assert page.inner_text("pre .ansi-2") == "green"
        assert "red <b> plain pinkgreen end" in page.text_content("pre")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for step in (1, 2):
            print(f"line {step}")
            live.log(step, {"loss": 1.0})
            page.wait_for_selector(f"pre:has-text('line {step}')")
    assert any(f"{live.id}/log" in url for url in asked)
    assert not any(f"{ended.id}/log" in url for url in asked)


def test_runs_that_repeat_each_other_are_one_row_with_a_mean_curve_and_the_winner_by_mean(look, serve, tmp_path):
    def objective(trial) -> float:
        rate = trial.hp.lin("rate", 0, 1)
        for step in range(5):
            trial.log(step, {"loss": rate + trial.seed, "epoch": step / 2, "astray": (math.nan, 1.0)[trial.seed]})
        # The first run of a configuration deceives: by its mean another one wins.
        return rate + (9 * trial.seed if trial.number == 0 else 3)

    search = Experiment(tmp_path / "search", search="random", seeds=2)
    for rate in (0.25, 0.5):
        search.study.enqueue_trial({"rate": rate})
    search.run(2, objective, progress=False)
    url = serve(tmp_path)
    page = look(url, "#view=Curves")
    assert page.inner_text("#status") == "4 trials"
    page.get_by_label("Average over").select_option("seed")
    assert page.inner_text("#status") == "2 means of 4 trials"
    until(page, "document.querySelectorAll('#runs tbody tr').length === 2")
    row = page.locator("#runs tbody tr").filter(has_text="00000").inner_text()
    assert "00000 ×2" in row
    assert "5 ± 6" in row  # of 0.25 and 9.25
    spreads = [(1.7, 1.04), (0.5, 0.0996), (160, 14.1), (0.912, 0.0042), (2e-9, 1.4e-9), (0, 3e200)]
    told = page.evaluate(
        """async spreads => {
            const { tellSpread } = await import('./groups.js');
            return spreads.map(([mean, deviation]) => tellSpread({ mean, deviation }));
        }""",
        spreads,
    )
    assert told[:4] == [Spread(*one, 3).told() for one in spreads[:4]]
    assert told == ["1.7 ± 1.0", "0.50 ± 0.10", "160 ± 14", "0.912 ± 0.004", "2.000e-9 ± 1.4e-9", "0.000e+0 ± 3e+200"]
    assert "nan" in row.split()  # of nan and 1, which is no 1
    select(page, "search/trials/00000")
    assert points(page, "loss") == [5]
    x, y, low, high = page.evaluate("document.querySelector('figure[data-key=loss] .plot').plot.data[1]")
    assert x == [0, 1, 2, 3, 4]
    assert y == [0.75] * 5
    assert low == pytest.approx([0.75 - 0.5**0.5] * 5)
    assert high == pytest.approx([0.75 + 0.5**0.5] * 5)
    page.get_by_label("Over", exact=True).select_option("by:epoch")
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.data[1][0].at(-1) === 2")
    text = open_view(page, "Search")
    assert "2 scored configurations; best mean (min) 3.5 by 00001 rate 0.5" in text
    page.get_by_role("button", name="00001", exact=True).click()
    until(page, "document.querySelector('tr[aria-selected=true]').innerText.includes('00001')")
    again = look(url, "#" + page.url.split("#")[1])  # the address holds all of it
    again.wait_for_selector("tr[aria-selected=true]")
    assert "00001 ×2" in again.inner_text("tr[aria-selected=true]")
    assert "best mean (min) 3.5" in again.inner_text("#view")
    open_view(again, "Curves")
    assert again.get_by_label("Over", exact=True).input_value() == "by:epoch"


def test_a_curve_is_hidden_by_its_name_and_stands_out_under_the_pointer_and_numbers_are_saved(look, url, tmp_path):
    page = look(url, "#view=Curves")
    select(page, "study/a", "study/b")
    assert points(page, "loss") == [200, 200]
    alphas = "document.querySelector('figure[data-key=loss] .plot').plot.series.slice(1).map(one => one.alpha)"
    page.hover(".legend button >> nth=1")
    until(page, f"JSON.stringify({alphas}) === '[0.15,1]'")
    page.click(".legend button >> nth=0")
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.data.length === 2")
    assert page.get_attribute(".legend button >> nth=0", "aria-pressed") == "false"
    assert "off=" in page.url
    page.get_by_label("Without outliers").check()
    until(page, "document.querySelector('figure[data-key=loss] .plot').plot.scales.y.max < 0.5")  # not 1.2, once
    figure = page.locator("figure[data-key=val_loss]")
    figure.hover()
    with page.expect_download() as told:
        figure.get_by_role("button", name="CSV").click()
    lines = Path(told.value.path()).read_text().splitlines()
    assert lines[:2] == ["trial,step,val_loss", "study/a,0,0.1"]
    assert len(lines) == 9
    with page.expect_download() as told:
        figure.get_by_role("button", name="PNG").click()
    assert told.value.suggested_filename == "val_loss.png"
    with Image.open(told.value.path()) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert (0xCE, 0x06, 0x7B) in colors  # the curve that is shown
    assert (0x2E, 0x85, 0xDE) not in colors
    page.get_by_label("Values").check()
    until(page, "document.querySelectorAll('figure[data-key=loss] table.values tr').length === 2")
    told = page.locator("figure[data-key=loss] table.values").inner_text().split()
    assert told == ["curve", "last", "smallest", "largest", "study/b", "0.205", "0.205", "1.2"]
    page.fill("#filter", "study")
    with page.expect_download() as told:
        page.click("#csv")
    head, *rows = Path(told.value.path()).read_text().splitlines()
    assert head.split(",")[:3] == ["id", "name", "state"]
    assert [row.split(",")[1] for row in rows] == ["study/b", "study/a"]
    assert "filter=study" in page.url


def test_the_step_and_what_was_chosen_last_time_are_in_the_address_too(look, url):
    page = look(url, "#view=Samples")
    select(page, "study/a", "study/b")
    page.press("#step", "ArrowLeft")
    page.reload()
    page.locator("#view output", has_text="step 50 (1 of 2)").wait_for()
    open_view(page, "Curves")
    page.get_by_label("Logarithmic").check()
    page.goto("about:blank")
    page.goto(url)  # by an address that says nothing
    page.get_by_label("Logarithmic").wait_for()
    assert page.get_by_label("Logarithmic").is_checked()
    again = look(url, "#" + page.url.split("#")[1])  # somebody else's browser
    again.get_by_label("Logarithmic").wait_for()
    assert again.get_by_label("Logarithmic").is_checked()


def test_after_ten_curves_they_are_dashed(look, url):
    page = look(url)
    at = [0, 9, 10, 19, 20, 39]
    looks = page.evaluate("async at => (m => at.map(i => [m.colorOf(i), m.dashOf(i)]))(await import('/dom.js'))", at)
    assert [looks[0][1], looks[1][1]] == [[], []]
    assert (looks[2][0], looks[3][0]) == (looks[0][0], looks[1][0])
    assert len({str(one) for one in looks}) == len(at)  # forty curves, each with a look of its own


def test_any_trials_are_compared_by_any_metric_and_a_search_tells_what_matters(look, serve, tmp_path):
    def objective(trial) -> float:
        trial.hp.lin("idle", 0, 1)
        return trial.hp.lin("rate", 0, 1) ** 2 if trial.number else -math.inf

    Experiment(tmp_path / "search", search="random").run(12, objective, progress=False)
    for number in range(3):
        with Trial(tmp_path / f"t{number}", config={"lr": number / 10, "same": 1}, system_interval_s=None) as trial:
            trial.log(0, {"loss": float(-number), "accuracy": float(number)})
    page = look(serve(tmp_path), "#view=Search")
    page.wait_for_selector("figure[aria-label=Importance] tr")
    shares = page.locator("figure[aria-label=Importance] tr").all_inner_texts()
    assert [one.split()[0] for one in shares] == ["rate", "idle"]
    assert "12 scored trials (1 infinite, not drawn); best (min) -inf by 00000" in page.inner_text("#view")
    assert page.locator("svg path.run").count() == 11
    select(page, "t0", "t1", "t2")
    page.get_by_label("Compare").select_option("selected")
    page.get_by_label("By", exact=True).select_option("accuracy")
    page.get_by_label("Best is the").select_option("max")
    until(page, "document.querySelector('#view').innerText.includes('best (max) 2 by t2 lr 0.2')")
    assert page.locator("svg path.run").count() == 3
    assert "same" not in page.inner_text("#view")
    best = page.locator("svg path.run").last  # the best lies on top
    best.focus()
    assert best.get_attribute("aria-label") == "Select t2, 2"
    page.keyboard.press("Enter")
    until(page, "document.querySelector('tr[aria-selected=true]').innerText.includes('t2')")
    page.locator("svg circle").first.focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('tr[aria-selected=true]').innerText.includes('search')")


def test_tags_and_notes_are_changed_by_who_has_the_token(look, serve, tmp_path):
    for name in "ab":
        with Trial(tmp_path / name, system_interval_s=None) as trial:
            trial.log(0, {"loss": 1.0})
    page = look(serve(tmp_path, token="a secret"), "?token=a+secret#view=Config")
    select(page, "a")
    page.get_by_label("Add a tag to a").fill(f"good {SCRIPT}")
    page.get_by_label("Add a tag to a").press("Enter")
    page.get_by_role("button", name="Remove the tag good of a").wait_for()
    page.get_by_role("button", name="pin", exact=True).click()
    page.get_by_role("button", name="unpin").wait_for()
    page.get_by_label("Note of a").fill(HOSTILE)
    page.get_by_label("Note of a").press("Tab")
    until(page, f"document.querySelector('#runs tbody tr').innerText.includes({HOSTILE!r})")  # pinned: the first
    page.get_by_role("button", name="Remove the tag good of a").click()
    page.get_by_role("button", name="Remove the tag good of a").wait_for(state="detached")
    record = Trial(tmp_path / "a").record
    assert record.tags == [SCRIPT, "pinned"]
    assert json.loads((record.path / "marks.json").read_text())["note"] == HOSTILE
    assert page.title() == "ai.lab"
    without = look(serve(tmp_path), "#view=Config")
    select(without, "a")
    without.wait_for_selector(".marks")
    assert without.locator(".marks input, .marks textarea").count() == 0


@pytest.mark.skipif(AXE is None, reason="axe-core is not installed")
def test_no_view_has_a_serious_finding_of_axe(look, serve, root):
    """Run where the package axe-playwright-python, which brings axe-core, is installed."""
    axe = next(Path(AXE.origin).parent.rglob("axe.min.js")).read_text()
    page = look(serve(root, token="t"), "?token=t#view=Curves")
    select(page, "study/a", "study/b", "search/trials/00005")
    page.evaluate(axe)
    found = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for view in VIEWS:
            open_view(page, view)
            told = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            found |= {(scheme, view, one["id"]): one["nodes"][0]["html"] for one in told if one["impact"] in SERIOUS}
    assert found == {}
