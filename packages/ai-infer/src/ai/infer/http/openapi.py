"""The server's own description of itself, as an OpenAPI 3.1 document."""

from typing import Any

from ai.infer.http.models.repository import Repository

_JSON = {"application/json": {"schema": {"type": "object"}}}


def describe(repository: Repository, version: str, secured: bool) -> dict[str, Any]:
    """Returns the document.

    Args:
        repository: whose models are listed.
        version: of the server.
        secured: whether requests need a token.
    """
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": sorted(repository.models)}}
    number = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _operation("Whether the server runs", [])},
        "/v2/health/ready": {"get": _operation("Whether every model can answer", [])},
        "/v2": {"get": _operation("The server's name, version and extensions", [])},
        "/v2/repository/index": {"post": _operation("All models and their states", [])},
        "/v2/repository/models/{name}/load": {"post": _operation("Loads a model anew", [name])},
        "/v2/repository/models/{name}/unload": {"post": _operation("Stops a model", [name])},
        "/models/{name}": {"post": _operation("Infers from raw bytes, or from a JSON list", [name], body=True)},
        "/metrics": {"get": _operation("Counters for Prometheus", [])},
        "/openapi.json": {"get": _operation("This document", [])},
    }
    for prefix, parameters in (("", [name]), ("/versions/{version}", [name, number])):
        base = f"/v2/models/{{name}}{prefix}"
        paths[base] = {"get": _operation("A model's versions, inputs and outputs", parameters)}
        paths[f"{base}/ready"] = {"get": _operation("Whether a model can answer", parameters)}
        paths[f"{base}/config"] = {"get": _operation("A model's configuration", parameters)}
        paths[f"{base}/infer"] = {"post": _operation("Infers, Open Inference Protocol v2", parameters, body=True)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ai-infer", "version": version},
        "paths": paths,
    }
    if secured:
        document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"token": []}]
    return document


def _operation(summary: str, parameters: list[dict[str, Any]], *, body: bool = False) -> dict[str, Any]:
    codes = {"200": "done", "400": "a request that cannot be", "401": "no valid token", "404": "no such model"}
    if body:
        codes |= {"413": "a body too large", "429": "too many requests wait", "503": "no worker can answer now"}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters,
        "responses": {code: {"description": text} for code, text in codes.items()},
    }
    if body:
        octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": {**_JSON, **octets}}
    return operation
