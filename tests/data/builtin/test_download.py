"""Downloads go on to the next mirror, whatever is wrong with this one."""

import hashlib
import socket
import threading

import pytest

from ai.data.builtin.download import download

CONTENT = b"the file"


@pytest.fixture
def serve():
    """Returns a function that starts a server which answers each connection with the bytes given."""
    servers = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/file"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def whole(content):
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"what is HTTP?\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nshort", "IncompleteRead"),
        (b"", "RemoteDisconnected"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "404"),
        (whole(b"another file"), "checksum"),
    ],
)
def test_a_broken_mirror_is_passed_over_and_named(serve, tmp_path, broken, reason):
    bad, good = serve(broken), serve(whole(CONTENT))
    md5 = hashlib.md5(CONTENT).hexdigest()
    download([bad, good], tmp_path / "file", md5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(OSError, match=rf"{bad}: .*{reason}"):
        download([bad], tmp_path / "other", md5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
