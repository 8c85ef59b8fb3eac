"""What a hostile or clumsy client does to the server, beside an ASGI app under uvicorn that does nothing.

    python benchmarks/http_battery.py                  all of it
    python benchmarks/http_battery.py --requests 5000 --uploads 20

Odd requests go to both, and where the statuses differ it says so; then mutated requests, uploads that are broken off
and connections that stay idle go to ours, and its memory is looked at.
"""

import argparse
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

BARE = """
import uvicorn

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

uvicorn.run(app, port=PORT, access_log=False, log_level="error", http="httptools", loop="uvloop", ws="none")
"""
MODEL = """
from torch import nn


def make():
    return nn.Linear(2, 2)
"""
X = b"[[1, 2]]"
JSON = b"content-type: application/json\r\n"


def post(body=X, fields=JSON, path=b"/models/m", version=b"1.1", method=b"POST", length=None):
    """Returns the bytes of one request."""
    size = b"content-length: %d\r\n" % (len(body) if length is None else length)
    return b"%s %s HTTP/%s\r\nhost: x\r\n%s%s\r\n%s" % (method, path, version, fields, size, body)


CHUNKED = b"POST /models/m HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + JSON + b"\r\n"
ODD = {
    "a good request": post(),
    "HTTP/1.0": post(version=b"1.0"),
    "HTTP/1.0, kept alive": post(version=b"1.0", fields=JSON + b"connection: keep-alive\r\n"),
    "HTTP/9": post(version=b"9"),
    "no host": post().replace(b"host: x\r\n", b""),
    "two hosts": post(fields=JSON + b"host: y\r\n"),
    "method in lower case": post(method=b"post"),
    "unknown method": post(method=b"BREW"),
    "HEAD": b"HEAD /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET of a route that is posted to": b"GET /models/m HTTP/1.1\r\nhost: x\r\n\r\n",
    "no such path": post(path=b"/nothing"),
    "absolute address": post(path=b"http://x/models/m"),
    "path with a NUL": post(path=b"/models/m\0"),
    "path of 60,000 bytes": post(path=b"/models/" + b"m" * 60_000),
    "header of 60,000 bytes": post(fields=JSON + b"x-a: " + b"a" * 60_000 + b"\r\n"),
    "2,000 headers": post(fields=JSON + b"".join(b"x-%d: 1\r\n" % i for i in range(2000))),
    "two lengths that differ": post(fields=JSON + b"content-length: 3\r\n"),
    "negative length": post(length=-5),
    "length with a sign": post().replace(b"content-length: 8", b"content-length: +8"),
    "length and chunks": post(fields=JSON + b"transfer-encoding: chunked\r\n"),
    "chunks": CHUNKED + b"8\r\n" + X + b"\r\n0\r\n\r\n",
    "chunks with an extension": CHUNKED + b"8;a=b\r\n" + X + b"\r\n0\r\n\r\n",
    "chunks with trailers": CHUNKED + b"8\r\n" + X + b"\r\n0\r\nx-a: 1\r\n\r\n",
    "chunk size that is none": CHUNKED + b"zz\r\n" + X + b"\r\n0\r\n\r\n",
    "space before the colon": post(fields=b"content-type : application/json\r\n"),
    "folded header": post(fields=JSON + b"x-a: 1\r\n  2\r\n"),
    "bare line feeds": post().replace(b"\r\n", b"\n"),
    "Expect": post(fields=JSON + b"expect: 100-continue\r\n"),
    "upgrade to h2c": post(fields=JSON + b"connection: upgrade\r\nupgrade: h2c\r\n"),
    "upgrade to a web socket": post(fields=JSON + b"connection: upgrade\r\nupgrade: websocket\r\n"),
    "two requests at once": post() + post(),
    "empty lines first": b"\r\n\r\n" + post(),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


def ask(port, data, *, ends=False):
    """Returns the statuses of the replies, until the server hangs up or says nothing more.

    Args:
        port: of the server.
        data: to send.
        ends: whether to hang up half, as one that has nothing more to say: ours drops what it has not answered then.
    """
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(1.0)
        got = b""
        with contextlib.suppress(OSError):
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                got += part
                connection.settimeout(0.2)
    lines = [piece.split(b" ", 1)[0] for piece in got.split(b"HTTP/1.1 ")[1:]]
    return " ".join(line.decode("latin1")[:3] for line in lines) or "nothing"


def compare(ours, bare):
    """Prints where the two differ; a difference of theirs that is ours to decide is expected to be below 500."""
    n_equal = 0
    for name, data in ODD.items():
        here, there = ask(ours, data), ask(bare, data)
        n_equal += here == there
        if here != there:
            print(f"{name:<34} ours {here:<10} bare uvicorn {there}")
    print(f"{n_equal} of {len(ODD)} are answered alike")


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 2:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at : at + 1] = rng.choice([b"\r\n", b"null", b"-1", b"1e999", b"[[", b"\0", b"99999999999999999999"])
        data = data or bytearray(b"x")
    return bytes(data)


def fuzz(port, n):
    """Sends mutated requests, each on a connection of its own; a good one must be answered afterwards."""
    rng, seen = random.Random(0), Counter()
    good = list(ODD.values())
    for _ in range(n):
        seen[ask(port, mutate(rng, rng.choice(good)), ends=True)] += 1
    print(f"{n:,} mutated requests: {dict(seen.most_common(8))}")
    if ask(port, post()) != "200":
        sys.exit("the server does not answer any more")
    if any(code.startswith("5") for answer in seen for code in answer.split() if code not in ("501", "503", "505")):
        print("with answers of 500:", {answer: k for answer, k in seen.items() if "500" in answer})


def rss_mb(pid):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def break_off(port, pid, n):
    """Uploads 40 MiB and hangs up before the last byte, again and again."""
    part = bytes(1 << 20)
    head = post(b"", length=40 << 20)
    before = rss_mb(pid)
    for i in range(n):
        with socket.create_connection(("127.0.0.1", port)) as connection, contextlib.suppress(OSError):
            connection.sendall(head)
            for _ in range(39):
                connection.sendall(part)
        if i == min(10, n // 2):
            time.sleep(0.5)
            before = rss_mb(pid)
    time.sleep(0.5)
    print(f"{n} uploads of 40 MiB broken off: {before:.0f} MB after the first, {rss_mb(pid):.0f} MB after the last")


def stay(port, pid, n):
    """Keeps connections open that were used once."""
    before, kept = rss_mb(pid), []
    for _ in range(n):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(post(bytes(4096), b""))
        connection.recv(4096)
        kept.append(connection)
    print(f"{n} idle connections: {rss_mb(pid) - before:.1f} MB more")
    for connection in kept:
        connection.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--idle", type=int, default=500)
    arguments = parser.parse_args()
    folder = Path(f"/tmp/http_battery_{free_port()}")
    folder.mkdir()
    (folder / "battery_model.py").write_text(MODEL)
    port = free_port()
    (folder / "bare.py").write_text(BARE.replace("PORT", str(port)))
    serve = ["-m", "ai.infer.cli", "serve", "--port", "0", "--log-level", "error"]
    command = [sys.executable, *serve, "m=battery_model:make?input=x:FP32:-1,2"]
    bare = subprocess.Popen([sys.executable, folder / "bare.py"])
    ours = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = int(ours.stdout.readline().rsplit(":", 1)[1])
        compare(address, port)
        stay(address, ours.pid, arguments.idle)
        break_off(address, ours.pid, arguments.uploads)
        fuzz(address, arguments.requests)
    finally:
        for process in (bare, ours):
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
