"""KServe's and MLServer's own Python clients, where they are installed: they bring servers with them, and CI has none.

`pip install kserve` and `pip install mlserver`, each in a place of its own, since their requirements differ.
"""

import asyncio
import contextlib
import http.client
import json

import numpy as np
import pytest
import torch

from ai.infer.http import app as make_app

X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


@contextlib.asynccontextmanager
async def serving(inferencer):
    """Serves `m` under uvicorn; yields its host and port."""
    import uvicorn

    with contextlib.closing(make_app({"m": inferencer})) as app:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
        starting = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield "{}:{}".format(*server.servers[0].sockets[0].getsockname()[:2])
        finally:
            server.should_exit = True
            await starting


@pytest.fixture(scope="module")
def expected(model):
    with torch.no_grad():
        return model(torch.from_numpy(X)).numpy()


@pytest.mark.filterwarnings("ignore")  # of the client's own
def test_kserve_talks_to_the_server(inferencer, expected):
    kserve = pytest.importorskip("kserve", exc_type=ImportError)

    async def scene():
        async with serving(inferencer) as address:
            client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
            url = f"http://{address}"
            assert await client.is_server_live(url)
            assert await client.is_server_ready(url)
            assert await client.is_model_ready(url, "m")
            assert not await client.is_model_ready(url, "other")
            for binary in (False, True):
                x = kserve.InferInput("x", [3, 8], "FP32")
                x.set_data_from_numpy(X, binary_data=binary)
                wanted = [kserve.protocol.infer_type.RequestedOutput("y", {"binary_data": binary})] if binary else None
                asked = kserve.InferRequest("m", [x], request_id="7", request_outputs=wanted)
                reply = await client.infer(url, asked, model_name="m")
                assert (reply.id, reply.model_name) == ("7", "m")
                np.testing.assert_allclose(reply.outputs[0].as_numpy(), expected, rtol=1e-6)
            await client.close()

    asyncio.run(scene())


@pytest.mark.filterwarnings("ignore")
def test_mlserver_writes_what_the_server_reads_and_reads_what_it_writes(inferencer, expected):
    codecs = pytest.importorskip("mlserver.codecs", exc_type=ImportError)
    from mlserver.types import InferenceResponse, MetadataModelResponse, MetadataServerResponse

    def ask(address, method, path, body=None):
        connection = http.client.HTTPConnection(address, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    async def scene():
        async with serving(inferencer) as address:
            whole = codecs.NumpyRequestCodec.encode_request(X)
            named = codecs.NumpyRequestCodec.encode_request(X, use_bytes=False)
            named.inputs = [codecs.NumpyCodec.encode_input("x", X)]
            for request in (whole, named):
                body = request.model_dump_json().encode()  # every field, the empty ones as null
                status, reply = await asyncio.to_thread(ask, address, "POST", "/v2/models/m/infer", body)
                assert status == 200, reply
                response = InferenceResponse.model_validate(reply)
                np.testing.assert_allclose(codecs.NumpyCodec.decode_output(response.outputs[0]), expected, rtol=1e-6)
            MetadataServerResponse.model_validate((await asyncio.to_thread(ask, address, "GET", "/v2"))[1])
            MetadataModelResponse.model_validate((await asyncio.to_thread(ask, address, "GET", "/v2/models/m"))[1])

    asyncio.run(scene())
