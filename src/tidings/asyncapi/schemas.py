"""JSON Schemas of payload types, as AsyncAPI has them (a superset of draft 7), and example bodies that fit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from tidings.kernel.codec import decoder
from tidings.kernel.message import JSON

Schema = dict[str, Any]

REF = "#/components/schemas/"
_VALUES = ("default", "enum", "const", "example", "examples")
_TEXTS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "partial-time": "12:00:00",
    "duration": "PT1H",
    "uuid": "0190a4e4-7b1c-7000-8000-000000000001",
    "decimal": "1.50",
    "email": "ada@example.org",
    "uri": "https://example.org/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
}


def schemas_of(types: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each type, and the schemas that these refer to by ``REF``; pydantic models say their own.

    Of a type that has none the schema is its title: anything fits.
    """
    types = list(types)
    clear = [_has_schema(kind) for kind in types]
    known = [kind for kind, has in zip(types, clear, strict=True) if has]
    ref = REF + "{name}"
    _, own = msgspec.json.schema_components(known, schema_hook=_title, ref_template=ref)
    models = _Models(taken=own)
    found, own = msgspec.json.schema_components(known, schema_hook=models.schema, ref_template=ref)
    schemas = iter(found)
    return (
        [_plain(next(schemas)) if has else _title(kind) for kind, has in zip(types, clear, strict=True)],
        {name: _plain(schema) for name, schema in {**own, **models.found}.items()},
    )


def _has_schema(kind: Any) -> bool:
    try:
        msgspec.json.schema_components([kind], schema_hook=_title)
    except Exception:  # a union that JSON cannot tell apart, say
        return False
    return True


def _title(kind: Any) -> Schema:
    return {"title": str(getattr(kind, "__name__", kind))}


class _Models:
    """Pydantic models among the types: their schemas, by names that nobody else has."""

    def __init__(self, taken: Mapping[str, Schema]) -> None:
        self.taken = taken
        self.found: dict[str, Schema] = {}

    def schema(self, kind: Any) -> Schema:
        """A reference to a model's schema; of what is no model, or one without a schema, its title."""
        try:
            bare = {kind.__name__: kind.model_json_schema()}
        except Exception:  # pydantic's own errors, or those of the user's json_schema_extra
            return _title(kind)
        clash = any(self.found.get(name, s) != s or name in self.taken for name, s in _with_parts(bare).items())
        prefix = f"{kind.__module__}." if clash else ""
        schema = kind.model_json_schema(ref_template=f"{REF}{prefix}{{model}}")
        if "$ref" in schema and "type" not in schema:  # a model that refers to itself is one of its own parts
            self.found |= {prefix + name: part for name, part in schema["$defs"].items()}
            return {"$ref": schema["$ref"]}
        name = prefix + "".join(c if c.isalnum() or c in "._-" else "_" for c in kind.__name__)
        self.found |= {prefix + part: s for part, s in schema.pop("$defs", {}).items()} | {name: schema}
        return {"$ref": REF + name}


def _with_parts(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    return {name: part for s in schemas.values() for name, part in s.get("$defs", {}).items()} | dict(schemas)


def _plain(schema: Any) -> Any:
    """Draft 7 of a schema: tuples in its way, no OpenAPI discriminators (the tags are in the members)."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made: Schema = {}
    for name, value in schema.items():
        if name in _VALUES:
            made[name] = value
        elif name in ("properties", "patternProperties", "dependentSchemas"):
            made[name] = {key: _plain(part) for key, part in value.items()}
        elif name == "prefixItems":
            made |= {"items": _plain(value)} | ({"additionalItems": False} if schema.get("items") is False else {})
        elif name not in ("discriminator", "$defs") and not (name == "items" and "prefixItems" in schema):
            made[name] = _plain(value)
    return made


# -- examples


def example_of(kind: Any, *, lax: bool = False) -> str | None:
    """An example body of a type, as one would type it; None where none is found that the type takes."""
    if kind is bytes:
        return None
    if kind is str:
        return "hello"
    for moment in ("", _TEXTS["date-time"]):  # the schema of a datetime may not say that it is one
        with suppress(Exception):  # whatever a schema says, and whatever the user's own validators raise
            (schema,), parts = schemas_of([kind])
            body = msgspec.json.encode(_example(schema, parts, moment, 0))
            decoder(kind, lax=lax)(body, JSON)
            return msgspec.json.format(body, indent=0).decode()
    return None


def _example(schema: Schema, parts: Mapping[str, Schema], text: str, depth: int, name: str = "text") -> Any:
    """``text``: what every text says that may say anything; else each says the name of its property."""
    if depth > 20:  # a type that needs itself has no smallest example
        return None
    if "$ref" in schema:
        return _example(parts[schema["$ref"].removeprefix(REF)], parts, text, depth + 1, name)
    if "default" in schema or "const" in schema:
        return schema.get("const", schema.get("default"))
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            options = [o for o in schema[choice] if o.get("type") != "null"] or [{"type": "null"}]
            return _example(options[0], parts, text, depth + 1, name)
    if schema.get("type") == "object":
        needed = {key: schema.get("properties", {}).get(key, {}) for key in schema.get("required", ())}
        return {key: _example(part, parts, text, depth + 1, key) for key, part in needed.items()}
    if schema.get("type") == "array":
        items = schema.get("items")
        some = items if isinstance(items, list) else [items or {}] * max(1, schema.get("minItems", 0))
        return [_example(part, parts, text, depth + 1, name) for part in some]
    return _scalar(schema, text or name)


def _scalar(schema: Schema, name: str) -> Any:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        usual = 1 if kind == "integer" else 1.5
        least = max(schema.get("minimum", usual), schema.get("exclusiveMinimum", usual - 1) + 1)
        most = min(schema.get("maximum", least), schema.get("exclusiveMaximum", least + 1) - 1)
        return schema.get("multipleOf", min(least, most))
    if kind == "string":
        text = _TEXTS.get(schema.get("format", ""), name) if "contentEncoding" not in schema else "AAEC"
        return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    return {"boolean": True, "null": None}.get(str(kind), name)
