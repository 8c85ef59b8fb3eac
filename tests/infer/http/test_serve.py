"""`ai-infer serve` that cannot start says why in a line, and ends."""

import argparse
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading

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


async def hello(scope, receive, send):
    if scope["type"] == "lifespan":
        await app()(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.parametrize("by", ["a Unix socket", "TLS"])
def test_it_is_reached_by_a_unix_socket_and_by_tls(by, tmp_path):
    if by == "TLS":
        if shutil.which("openssl") is None:
            pytest.skip("no openssl to make a certificate")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
        make += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
        subprocess.run(make.split(), check=True, stderr=subprocess.DEVNULL)
        options = ["--port", "0", "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    else:
        options = ["--uds", str(tmp_path / "socket")]
    replies = []

    def ask(address):
        try:
            if by == "TLS":
                assert address.startswith("https://127.0.0.1:")
                plain = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=100)
                connection = ssl.create_default_context(cafile=certificate).wrap_socket(
                    plain, server_hostname="localhost"
                )
            else:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(100)
                connection.connect(address.removeprefix("unix:"))
            with connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                replies.append(b"".join(iter(lambda: connection.recv(1000), b"")))
        finally:
            server.should_exit = True

    def listens(address):
        threads.append(threading.Thread(target=ask, args=(address,)))
        threads[0].start()

    threads: list[threading.Thread] = []
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    server = serve.make_server(hello, parser.parse_args(["net=nowhere:f", *options]), listens)
    server.run()
    threads[0].join(100)
    assert replies == [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"]


def test_a_structured_log_has_the_message_and_the_traceback_in_one_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("ai.infer", logging.ERROR, __file__, 1, "model %s failed", ("m",), sys.exc_info())
    line = serve.JsonFormatter().format(record)
    assert "\n" not in line
    about = json.loads(line)
    assert (about["level"], about["logger"], about["message"]) == ("ERROR", "ai.infer", "model m failed")
    assert about["traceback"].endswith("ValueError: two\nlines")
