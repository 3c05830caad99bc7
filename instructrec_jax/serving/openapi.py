"""The OpenAPI document of the service, made of its table of endpoints."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from instructrec_jax import __version__
from instructrec_jax.serving.bodies import Refusal
from instructrec_jax.serving.endpoints import Endpoint
from instructrec_jax.serving.gate import OPEN

PATH = "/openapi.json"
_REFUSALS = {
    "400": "the body is not JSON",
    "401": "no token, an unknown or an expired one",
    "403": "the token does not allow it",
    "408": "the body took too long to come",
    "413": "the body is too long",
    "415": "the body is not application/json",
    "422": "the body cannot be used",
    "429": "too many requests: try again after `Retry-After` seconds",
    "503": "not ready, or not ranked in time: try again after `Retry-After` seconds",
}
_WITHOUT_BODY: tuple[str, ...] = ("401", "403", "429")
_WHEN_OPEN: tuple[str, ...] = ("503",)
_OUT = "serialization"


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Returns the document, OpenAPI 3.1."""
    answers: list[type[BaseModel]] = [each.answer for each in endpoints]
    asked = [each.body for each in endpoints if each.body is not None]
    modes = [(model, "serialization") for model in dict.fromkeys([*answers, Refusal])]
    modes += [(model, "validation") for model in dict.fromkeys(asked)]
    references, shared = models_json_schema(
        modes,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )

    def content(model: type[BaseModel], mode: str) -> dict[str, Any]:
        return {"application/json": {"schema": references[(model, mode)]}}  # type: ignore[index]

    paths: dict[str, Any] = {}
    for each in endpoints:
        refusals = tuple(_REFUSALS) if each.body else _WITHOUT_BODY
        if each.scope == OPEN:
            refusals = _WHEN_OPEN
        operation: dict[str, Any] = {
            "summary": each.summary,
            "operationId": each.path.strip("/").replace("/", "_"),
            "responses": {
                "200": {"description": "the answer", "content": content(each.answer, _OUT)}
            }
            | {
                status: {"description": _REFUSALS[status], "content": content(Refusal, _OUT)}
                for status in refusals
            },
        }
        if each.absent:
            absent = {"description": each.absent, "content": content(Refusal, _OUT)}
            operation["responses"]["404"] = absent
        if each.scope != OPEN:
            operation["security"] = [{"token": []}]
        if each.body is not None:
            body = {"required": True, "content": content(each.body, "validation")}
            operation["requestBody"] = body
        paths.setdefault(each.path, {})[each.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "instructrec", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": shared["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
