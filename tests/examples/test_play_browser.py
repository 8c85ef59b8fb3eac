"""The page of `ai-examples play` in a browser: by keyboard, and by finger on a phone's screen."""

import contextlib
import socket
import threading

import pytest
import uvicorn

from ai.examples.play.server import PlayApp
from ai.examples.play.table import Table
from ai.game import TicTacToe
from tests.chromium import NEEDED

pytestmark = NEEDED
STONES = """Array.from(document.querySelectorAll("#board button")).map(
  cell => cell.querySelector(".p1") ? 1 : cell.querySelector(".p2") ? 2 : 0)"""


@contextlib.contextmanager
def serving(app):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture
def look(browser):
    """Opens the page of tic-tac-toe, against a search by rollouts; afterwards nothing may have gone wrong in it."""
    wrong = []
    with serving(PlayApp(Table(TicTacToe()))) as url, contextlib.ExitStack() as stack:

        def open_page(**how):
            context = browser.new_context(**how)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: wrong.append(error.stack))
            page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
            page.goto(url)
            waits(page, "Your move.")
            return page

        yield open_page
    assert wrong == []


def waits(page, status):
    page.wait_for_function("text => document.getElementById('status').textContent === text", arg=status)


def test_a_game_is_played_and_taken_back_by_keyboard(look):
    page = look(viewport={"width": 1280, "height": 800})
    for key in ("ArrowRight", "ArrowDown", "Enter"):  # from the first cell to the middle one
        page.keyboard.press(key)
    page.wait_for_function(f"({STONES}).filter(stone => stone === 2).length === 1")
    waits(page, "Your move.")
    assert page.evaluate(STONES)[4] == 1
    page.keyboard.press("Enter")  # on a stone: nothing
    page.keyboard.press("h")
    assert page.get_attribute("#hints", "aria-pressed") == "true"
    assert page.locator("#thoughts tr").count() > 2
    page.keyboard.press("u")
    page.wait_for_function(f"({STONES}).every(stone => stone === 0)")
    waits(page, "Your move.")


def test_a_game_is_played_to_its_end_by_finger_on_a_small_screen(look):
    page = look(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("#board button").first.bounding_box()["width"] >= 44  # as wide as a finger
    for _ in range(5):
        page.locator("#board button.can").first.tap()
        page.wait_for_function("document.getElementById('status').textContent !== 'thinking …'")
        if page.text_content("#status") != "Your move.":
            break
        waits(page, "Your move.")
    page.wait_for_function(
        "['You win.', 'You lose.', 'A draw.'].includes(document.getElementById('status').textContent)"
    )
    page.locator("#new").tap()
    waits(page, "Your move.")
    assert page.evaluate(f"({STONES}).every(stone => stone === 0)")
