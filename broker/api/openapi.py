"""GET /openapi.json: the document is written from the route handlers, so no route can be missing from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_origin, get_type_hints

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from broker import __version__
from broker.api.views import ErrorBody
from broker.secret import Secret

_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"\{(\w+):str\}")
_OPEN_TAG = "operations"  # whether a process lives is told to anybody; everything else takes a credential
_ABOUT = {
    "slug": "The provider's slug, such as github or salesforce.",
    "user_id": "The calling application's own id of a user, percent-encoded.",
    "organization_id": "The calling application's own id of an organization, percent-encoded.",
    "connection_id": "The id of a connected account.",
    "operation_id": "The id of a bulk operation.",
}


class Shapes(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler reads and answers, where its signature does not say."""

    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    answers: tuple[Any, ...] = ()  # one of these; none: what the signature returns


def documented(
    *,
    body: type[msgspec.Struct] | None = None,
    query: type[msgspec.Struct] | None = None,
    answers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return the `opt` of a handler that reads its body or query itself."""
    return {"shapes": Shapes(body=body, query=query, answers=tuple(answers))}


def serving(handlers: Iterable[HTTPRouteHandler]) -> HTTPRouteHandler:
    """Make the route that gives the document of *handlers*."""
    content = msgspec.json.encode(document(handlers))

    @get("/openapi.json", tags=[_OPEN_TAG], include_in_schema=False)
    async def openapi() -> Response[bytes]:
        """Describe this API (OpenAPI 3.1)."""
        return Response(content, media_type="application/json", headers={"Cache-Control": "public, max-age=300"})

    return openapi


def document(handlers: Iterable[HTTPRouteHandler]) -> dict[str, Any]:
    """Return the OpenAPI document of every handler that is not kept out of it."""
    shown = [handler for handler in handlers if handler.include_in_schema is not False]
    kinds: list[Any] = [ErrorBody]
    for handler in shown:
        shapes = _shapes(handler)
        kinds += [kind for kind in (shapes.body, *shapes.answers) if kind is not None and kind not in kinds]
    schemas, components = msgspec.json.schema_components(kinds, schema_hook=_schema_of, ref_template=_REF)
    references = list(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for handler in shown:
        for path in handler.paths:
            place = paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", path), {})
            for method in handler.http_methods:
                place[method.lower()] = _operation(handler, path, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "responses": {"Problem": {"description": "What went wrong.", "content": _json(schemas[0])}},
            "securitySchemes": {"credential": {"type": "http", "scheme": "bearer", "description": "An API key, sk_…"}},
        },
        "security": [{"credential": []}],
    }


def _shapes(handler: HTTPRouteHandler) -> Shapes:
    shapes: Shapes = handler.opt.get("shapes") or Shapes()
    returned = get_type_hints(handler.fn)["return"]
    if shapes.answers or returned is type(None) or issubclass(get_origin(returned) or returned, Response):
        return shapes
    return msgspec.structs.replace(shapes, answers=(returned,))


def _operation(handler: HTTPRouteHandler, path: str, references: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    shapes = _shapes(handler)
    about = " ".join((handler.fn.__doc__ or "").split())
    answer: dict[str, Any] = {"description": "Done." if handler.status_code == 204 else "The answer."}
    found = [_reference(kind, references) for kind in shapes.answers]
    if found:
        answer["content"] = _json(found[0] if len(found) == 1 else {"oneOf": found})
    operation: dict[str, Any] = {
        "operationId": handler.fn.__name__,
        "summary": handler.summary or about.partition(". ")[0].rstrip("."),
        "description": about,
        "tags": list(handler.tags or ()),
        "parameters": [_path_parameter(name) for name in _PATH_PARAMETER.findall(path)] + _query(shapes.query),
        "responses": {str(handler.status_code): answer, "default": {"$ref": "#/components/responses/Problem"}},
    }
    if shapes.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(_reference(shapes.body, references))}
    if _OPEN_TAG in operation["tags"]:
        operation["security"] = []
    return operation


def _reference(kind: Any, references: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    return next(schema for known, schema in references if known == kind)


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": _ABOUT[name], "schema": {"type": "string"}}


def _query(kind: type[msgspec.Struct] | None) -> list[dict[str, Any]]:
    if kind is None:
        return []
    _, components = msgspec.json.schema_components([kind], schema_hook=_schema_of)
    fields = components[kind.__name__]["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in fields.items()]


def _schema_of(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "format": "password", "writeOnly": True}
    raise NotImplementedError(kind.__name__)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
