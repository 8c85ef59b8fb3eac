"""How the page of `ai-lab serve` looks: each view of a search, light, dark, on a phone, and without some colours.

    python benchmarks/lab_views.py FOLDER OUT           # of a search: OUT/light-Curves.png and so on
    python benchmarks/lab_views.py FOLDER OUT --sheets  # and all views of a guise as one small picture, OUT/light.jpg

Needs the package playwright and a chromium on the PATH, which does the filtering: `deuteranopia` is its picture of how
who lacks the green cones sees the page. The six best configurations of the search are chosen, averaged over seeds. What
names this machine is left out of the pictures.
"""

import argparse
import shutil
from pathlib import Path

from lab_page import FLAGS, serving
from PIL import Image
from playwright.sync_api import Page, sync_playwright

VIEWS = ("Curves", "Samples", "Media", "Config", "Code", "System", "Search", "Log")
GUISES = {  # colour scheme, width and height, what the eye lacks
    "light": ("light", (1360, 900), "none"),
    "dark": ("dark", (1360, 900), "none"),
    "phone": ("light", (390, 844), "none"),
    "deuteranopia": ("light", (1360, 900), "deuteranopia"),
}
CHOSEN = 6
ANONYMOUS = """
document.querySelector('#root').textContent = document.querySelector('#root').textContent.split('/').at(-1);
for (const head of document.querySelectorAll('#view th')) {
  if (['command', 'folder', 'host', 'recorded'].includes(head.textContent)) head.parentNode.remove();
}
"""


def choose(page: Page, url: str) -> str:
    """Returns the address at which the best configurations are chosen."""
    page.goto(url)
    page.locator("#runs tbody tr").first.wait_for()
    page.get_by_label("Average over").select_option("seed")
    score = page.locator('[data-column="score"]')
    while score.get_attribute("aria-sort") != "descending":
        score.click()
    page.locator("#clear").click()
    rows = page.locator("#runs tbody tr")
    for row in range(min(CHOSEN, rows.count())):
        rows.nth(row).locator("input").check()
    return page.url


def looks(page: Page, address: str, out: Path, guise: str) -> list[Path]:
    """Saves a picture of each view in one guise, and returns their files."""
    scheme, (width, height), lacking = GUISES[guise]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.context.new_cdp_session(page).send("Emulation.setEmulatedVisionDeficiency", {"type": lacking})
    files = []
    for view in VIEWS:
        page.goto("about:blank")
        page.goto(address)
        page.locator(f"#tab-{view}").click()
        page.locator(f'#view[data-drawn="{view}"]').wait_for()
        page.locator("#runs").evaluate("runs => runs.style.height = '170px'")
        page.wait_for_timeout(1500)  # the page has asked again, and nothing is drawn any more
        page.evaluate(ANONYMOUS)
        if view == "Curves" and guise != "phone":
            page.locator("figure .u-over").first.hover(position={"x": 200, "y": 80})
        if guise == "phone":
            page.locator("nav").scroll_into_view_if_needed()
            page.locator("nav").evaluate("nav => scrollTo(0, nav.offsetTop)")
        files.append(out / f"{guise}-{view}.png")
        page.screenshot(path=files[-1])
    return files


def sheet(files: list[Path], to: Path) -> None:
    """Saves pictures of one size as one, in two rows."""
    pictures = [Image.open(file).convert("RGB") for file in files]
    width = 240 if pictures[0].width < 600 else 440
    height = round(pictures[0].height * width / pictures[0].width)
    across = len(pictures) // 2
    whole = Image.new("RGB", (across * (width + 8) - 8, 2 * (height + 8) - 8), "#888")
    for place, picture in enumerate(pictures):
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        whole.paste(small, (place % across * (width + 8), place // across * (height + 8)))
    whole.save(to, quality=50, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sheets", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as started, serving(given.folder) as url:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(120_000)
        address = choose(page, url)
        for guise in GUISES:
            files = looks(page, address, given.out, guise)
            if given.sheets:
                sheet(files, given.out / f"{guise}.jpg")
        browser.close()
