"""Two servers behind nginx, by the configuration that the guide shows; one of them is killed meanwhile."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import warm_python

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]
GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "machines.md"
MODEL = """
from torch import nn


def same():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.eye_(layer.weight)
    return layer
"""


def manifests():
    """Returns the guide's Deployment and Service."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return list(yaml.safe_load_all(shown))


def test_the_manifest_agrees_with_itself_and_with_the_image():
    deployment, service = manifests()
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", (GUIDE.parents[2] / "Dockerfile").read_text(), re.MULTILINE)
    ports = [container["ports"][0]["containerPort"], service["spec"]["ports"][0]["targetPort"]]
    ports += [container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")]
    assert ports == [int(exposed)] * 5
    options = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert float(options["--drain"]) < pod["spec"]["terminationGracePeriodSeconds"]


@pytest.fixture
def servers(tmp_path):
    (tmp_path / "shop.py").write_text(MODEL)
    command = [sys.executable, "-m", "ai.infer.cli", "serve", "same=shop:same?input=x:FP32:-1,2", "--port", "0"]
    command += manifests()[0]["spec"]["template"]["spec"]["containers"][0]["args"][1:]
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    nested = {**os.environ, "WARM_PYTHON_NESTED": "1"}
    started = [warm_python.Process(command, env=nested, **how), subprocess.Popen(command, **how)]
    addresses = []
    for one in started:
        line = one.stdout.readline()
        addresses.append(line.split("//")[1].strip())
    yield started, addresses
    for one in started:
        one.terminate()
        one.wait(100)
        one.stdout.close()


@pytest.fixture
def balancer(tmp_path, servers):
    (shown,) = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for there, here in zip(["10.0.0.2:8000", "10.0.0.3:8000"], servers[1], strict=True):
        assert there in shown
        shown = shown.replace(there, here)
    place = tempfile.mkdtemp(dir="/tmp")  # a socket's path may have a hundred bytes, and nobody else takes it
    shown = shown.replace("listen 80;", f"listen unix:{place}/nginx;")
    head = f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off; events {{}}\nhttp {{ access_log off;\n"
    rooms = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(head + rooms + shown + "}\n")
    running = subprocess.Popen([NGINX, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"])
    yield f"{place}/nginx"
    running.terminate()
    running.wait(100)
    shutil.rmtree(place)


def ask(path, method, what, body=None):
    """Returns status and body of the reply to one request at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(100)
        line.connect(path)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = line
        connection.request(method, what, body)
        reply = connection.getresponse()
        return reply.status, reply.read()


def test_no_request_is_lost_when_one_of_two_servers_is_killed(servers, balancer):
    started, _ = servers
    deadline = time.monotonic() + 100
    while True:
        try:
            assert ask(balancer, "GET", "/v2/health/ready")[0] == 200
            break
        except (FileNotFoundError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    for number in range(200):
        if number == 100:
            started[0].kill()
        x = np.array([number, -number], np.float32)
        assert ask(balancer, "POST", "/models/same", x.tobytes()) == (200, x.tobytes())
