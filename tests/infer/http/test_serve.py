"""`ai-infer serve` that cannot start says why in a line, and ends."""

import argparse
import socket

import pytest

from ai.infer.http import serve

pytest.importorskip("uvicorn")
pytest.importorskip("httptools")


def app(failure=None):
    async def answer(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup" and failure is not None:
                await send({"type": "lifespan.startup.failed", "message": failure})
                return
            await send({"type": f"{message['type']}.complete"})

    return answer


def started(app, *options):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    server = serve.make_server(app, parser.parse_args(["net=nowhere:f", *options]), lambda address: None)
    server.run()
    return server.started


def test_model_that_cannot_be_loaded_is_told_without_a_trace_of_the_loop(caplog):
    assert not started(app("model 'net': the factory 'nowhere:f' must be importable"), "--port", "0")
    assert "the factory 'nowhere:f' must be importable" in caplog.text
    assert "never retrieved" not in caplog.text


def test_address_in_use_is_told_without_a_trace_of_the_loop(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not started(app(), "--port", str(taken.getsockname()[1]))
    assert "address already in use" in caplog.text
    assert "never retrieved" not in caplog.text
