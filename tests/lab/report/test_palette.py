import re
from importlib.resources import files

import numpy as np

from ai.lab.report.palette import DARK_LIFT, PALETTE

# Machado, Oliveira, Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency": the
# matrix of deuteranopia (severity 1) for linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = TO_XYZ @ rgb / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    g = 1.5 - np.sqrt(c7 / (c7 + 25**7)) / 2
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, g * a1)) % 360, np.degrees(np.arctan2(b2, g * a2)) % 360
    turn = np.radians((h2 - h1 + 180) % 360 - 180)
    light, c = (l1 + l2) / 2, (c1 + c2) / 2
    h = ((h1 + h2 + (360 if abs(h1 - h2) > 180 else 0)) / 2) % 360
    t = 1 - 0.17 * cosine(h - 30) + 0.24 * cosine(2 * h) + 0.32 * cosine(3 * h + 6) - 0.2 * cosine(4 * h - 63)
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc, dh = (c2 - c1) / (1 + 0.045 * c), 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * c * t)
    r = -2 * np.sqrt(c**7 / (c**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + r * dc * dh))


def cosine(degrees: float) -> float:
    return float(np.cos(np.radians(degrees)))


def test_the_measure_is_that_of_its_published_examples():
    # Sharma, Wu, Dalal 2005, "The CIEDE2000 color-difference formula", table 1, pairs 1, 7 and 25.
    assert abs(difference(np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])) - 2.0425) < 1e-4
    assert abs(difference(np.array([50, 0, 0]), np.array([50, -1, 2])) - 2.3669) < 1e-4
    assert (
        abs(difference(np.array([60.2574, -34.0099, 36.2677]), np.array([60.4626, -34.1751, 39.4387])) - 1.2644) < 1e-4
    )


def lifted(color: str) -> str:
    """As CSS's `brightness` has it."""
    return "#" + "".join(f"{min(255, round(int(color[i : i + 2], 16) * DARK_LIFT)):02x}" for i in (1, 3, 5))


def test_any_two_colours_are_told_apart_with_and_without_red_green_blindness():
    for see in (np.eye(3), DEUTERANOPIA):
        seen = [lab(np.clip(see @ linear(color), 0, 1)) for color in PALETTE]
        assert min(difference(a, b) for i, a in enumerate(seen) for b in seen[:i]) >= 13
        seen = [lab(np.clip(see @ linear(lifted(color)), 0, 1)) for color in PALETTE]
        assert min(difference(a, b) for i, a in enumerate(seen) for b in seen[:i]) >= 12


def test_every_colour_stands_out_from_white_and_from_the_dark_ground():
    for color in PALETTE:
        dark = float(TO_XYZ[1] @ linear("#14171a"))
        assert 1.05 / (float(TO_XYZ[1] @ linear(color)) + 0.05) >= 3
        assert (float(TO_XYZ[1] @ linear(lifted(color))) + 0.05) / (dark + 0.05) >= 3


def test_the_page_has_the_same_colours():
    text = (files("ai.lab.page") / "web" / "dom.js").read_text()
    style = (files("ai.lab.page") / "web" / "style.css").read_text()
    assert re.findall(r"brightness\(([\d.]+)\)", style) == [str(DARK_LIFT)]
    assert tuple(re.findall("#[0-9a-f]{6}", text.partition("const PALETTE")[2].partition(";")[0])) == PALETTE
