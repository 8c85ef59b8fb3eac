"""What both sides raise at bytes that they cannot read."""


class WireError(ValueError):
    """Bytes that are no request and no reply."""
