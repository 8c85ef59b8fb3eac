"""What a request accepts, as a form of ours."""

import pytest

from ai.infer.http.formats.accept import ReplyForm, accept_of, reply_form

BYTES, JSON, PARTS = ReplyForm

HEADERS = [
    # of clients as they are installed
    (b"*/*", None),  # curl, requests, httpx, aiohttp, fetch, superagent
    (b"application/json, text/plain, */*", JSON),  # axios, Angular
    (b"application/json, text/javascript, */*; q=0.01", JSON),  # jQuery's getJSON
    (b"application/json, application/*+json", JSON),  # Spring
    (b"application/json, text/event-stream", PARTS),  # of the Model Context Protocol
    (b"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", None),  # Java's HttpURLConnection
    (b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", None),  # browsers
    (b"text/event-stream", PARTS),  # EventSource
    # weights
    (b"application/json;q=0.5, application/octet-stream", BYTES),
    (b"application/json, application/octet-stream;q=0.999", JSON),
    (b"application/json;q=0.1, */*", BYTES),
    (b"application/json;q=0.1, */*;q=0.05", JSON),
    (b"application/json;q=0, */*;q=0.1", BYTES),
    (b"application/octet-stream;q=0, */*", JSON),
    (b"text/event-stream;q=0, */*", None),
    (b"text/event-stream;q=0.5, application/json", JSON),
    (b"text/event-stream;q=0.5, */*;q=0.4", PARTS),
    (b"application/octet-stream;q=0.2, application/json;q=.3", JSON),
    (b"application/json ; charset=utf-8 ; Q = 0.2 , application/octet-stream;q=0.1", JSON),
    (b"application/json;q=0, text/event-stream;q=1.0", PARTS),
    (b"application/json, application/xml, application/json", JSON),
    # the range that names a form most closely is heard, wherever it stands
    (b"*/*;q=0.9, application/*;q=0.1, application/json;q=0.5", JSON),
    (b"application/octet-stream, application/*", BYTES),
    (b"application/*;q=0.2, application/json;q=0.1", BYTES),
    (b"application/*", None),
    # equal ones, none that we have, and what is no header
    (b"application/octet-stream, application/json", None),
    (b"text/*", None),
    (b"image/png", None),
    (b"application/json;q=0", None),
    (b"", None),
    (b",;=,;q", None),
    (b"application/jsonp, xapplication/json", None),
    (b"application/json;q=nan, */*", JSON),
    (b"application/json;q=9.9, */*", JSON),
    (b"APPLICATION/Json", JSON),
    (b'application/json;x="a,\\",b;q=0";q=0.2, application/octet-stream;q=0.3', BYTES),
    (b'application/octet-stream;x="never closed, application/json', BYTES),
    (b"application/json," + b"x" * 5000, None),
]


@pytest.mark.parametrize(("accept", "form"), HEADERS)
def test_the_form_is_what_a_client_likes_best(accept, form):
    assert reply_form(accept) is form


def test_several_lines_are_one_list():
    lines = [(b"accept", b"application/json;q=0.1"), (b"host", b"x"), (b"accept", b"application/octet-stream;q=0.2")]
    assert reply_form(accept_of(lines)) is BYTES
