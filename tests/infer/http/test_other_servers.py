"""The application under ASGI servers that are not uvicorn: nothing in it leans on one of them."""

import asyncio
import contextlib
import json

import pytest
import torch

from ai.infer.http import app as make_app

X = torch.arange(8, dtype=torch.float32).view(1, 8)


async def hypercorn(app, path, stop):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"unix:{path}"]
    await serve(app, config, shutdown_trigger=stop.wait)


async def granian(app, path, stop):
    from granian.constants import Interfaces
    from granian.server.embed import Server

    server = Server(app, uds=path, interface=Interfaces.ASGI, log_enabled=False)
    serving = asyncio.create_task(server.serve())
    await stop.wait()
    server.stop()
    await serving


async def listens(path):
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        await writer.wait_closed()
        return True
    return False


async def ask(path, body, headers=""):
    """Returns head and body of the reply to one plain request, as they came."""
    reader, writer = await asyncio.open_unix_connection(path)
    head = f"POST /models/m HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply.split(b"\r\n\r\n", 1)


@pytest.mark.parametrize("serve", [hypercorn, granian])
def test_application_runs_under_other_servers(serve, inferencer, model, tmp_path):
    async def scene():
        stop, path = asyncio.Event(), tmp_path / "socket"
        with contextlib.closing(make_app({"m": inferencer}, max_body_bytes=1000)) as app:
            serving = asyncio.create_task(serve(app, path, stop))
            while not serving.done() and not await listens(path):
                await asyncio.sleep(0.001)
            try:
                head, body = await ask(path, json.dumps(X.tolist()).encode(), "content-type: application/json\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert torch.equal(torch.tensor(json.loads(body)), model(X))
                head, body = await ask(path, X.numpy().tobytes(), "x-shape: 1,8\r\n")
                assert b"x-shape: 1,4" in head
                assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.float32).view(1, 4), model(X))
                assert (await ask(path, bytes(1001)))[0].startswith(b"HTTP/1.1 413 ")
                head, body = await ask(path, b"[[1]]", "accept: text/event-stream\r\nx-shape: 1,8\r\n")
                assert head.startswith(b"HTTP/1.1 400 ")
                head, body = await ask(path, X.numpy().tobytes(), "accept: text/event-stream\r\nx-shape: 1,8\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert body.count(b"data: ") == 2
            finally:
                stop.set()
                await serving

    asyncio.run(scene())


def test_http2_is_spoken_by_a_server_that_speaks_it(inferencer, model, tmp_path):
    """Ten requests at once on one connection, one of them too large and one in parts."""
    h2_connection, h2_events = pytest.importorskip("h2.connection"), pytest.importorskip("h2.events")

    async def scene():
        stop, path = asyncio.Event(), tmp_path / "socket"
        with contextlib.closing(make_app({"m": inferencer}, max_body_bytes=1000)) as app:
            serving = asyncio.create_task(hypercorn(app, path, stop))
            while not serving.done() and not await listens(path):
                await asyncio.sleep(0.001)
            try:
                reader, writer = await asyncio.open_unix_connection(path)
                line = h2_connection.H2Connection()
                line.initiate_connection()
                heads, bodies, open_streams = {}, {}, set()
                for i in range(10):
                    stream = line.get_next_available_stream_id()
                    fields = [(":method", "POST"), (":path", "/models/m"), (":scheme", "http"), (":authority", "x")]
                    fields += [("x-shape", "1,8"), ("accept", "text/event-stream" if i == 5 else "*/*")]
                    line.send_headers(stream, fields)
                    line.send_data(stream, bytes(1001) if i == 7 else (X + i).numpy().tobytes(), end_stream=True)
                    open_streams.add(stream)
                while open_streams:
                    writer.write(line.data_to_send())
                    data = await reader.read(1 << 16)
                    assert data
                    for event in line.receive_data(data):
                        if isinstance(event, h2_events.ResponseReceived):
                            heads[event.stream_id] = dict(event.headers)
                        elif isinstance(event, h2_events.DataReceived):
                            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                        elif isinstance(event, h2_events.StreamEnded):
                            open_streams.remove(event.stream_id)
                line.close_connection()
                writer.write(line.data_to_send())
                writer.close()
                await writer.wait_closed()
            finally:
                stop.set()
                await serving
        for i, stream in enumerate(range(1, 21, 2)):
            assert heads[stream][b":status"] == (b"413" if i == 7 else b"200")
            if i == 5:
                assert bodies[stream].count(b"data: ") == 2
            elif i != 7:
                y = torch.frombuffer(bytearray(bodies[stream]), dtype=torch.float32).view(1, 4)
                torch.testing.assert_close(y, model(X + i))

    asyncio.run(scene())
