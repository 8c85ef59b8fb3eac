"""The colours of curves, in pictures as on the page.

Any two of the ten are told apart with and without red-green blindness (a difference of at least 13 by CIEDE2000, also
as deuteranopes see them) and stand out from white and from the page's dark ground, on which the page lifts them by
`DARK_LIFT`; further curves are dashed.
"""

PALETTE = (
    "#2e85de",
    "#ce067b",
    "#a49415",
    "#0c6a46",
    "#9b4903",
    "#e46ba1",
    "#206875",
    "#7d85a3",
    "#1d41f9",
    "#977b62",
)
DARK_LIFT = 1.15
DASHES = ("solid", (0, (5, 3)), (0, (2, 2)), (0, (7, 2, 2, 2)))
"""Of the first ten curves, the next ten, and so on."""


def color_of(index: int) -> str:
    """Returns the colour of the curve at a place."""
    return PALETTE[index % len(PALETTE)]
