"""How much to add on either side."""


def pair(pad: int | tuple[int, int]) -> tuple[int, int]:
    """Returns the padding before and after an axis; one number means both."""
    return (pad, pad) if isinstance(pad, int) else (int(pad[0]), int(pad[1]))
