"""Requests out of their bodies: pictures and options of a form, JSON; what is wrong is said with the field's name."""

from __future__ import annotations

from typing import Any, TypeVar

from pixelgate_common.errors import InvalidRequest, field_problems
from pixelgate_common.multipart_body import read_files, read_parts
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def pictures(content_type: str, body: bytes, field: str, max_files: int) -> list[bytes]:
    """Return the files named `field` of a form, or the one picture that the body is. Raises `InvalidRequest` (422)."""
    if content_type.startswith("image/"):
        return [body]
    found = read_files(content_type, body, field, max_files)
    if not found:
        raise InvalidRequest(f"At least one file named {field} is needed.", field=field)
    return found


def options(model: type[Model], fields: dict[str, str]) -> Model:
    """Return the options that a form's fields give. Raises `InvalidRequest` (422)."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _refused(error) from error


def json_body(model: type[Model], body: bytes) -> Model:
    """Return what a JSON body says. Raises `InvalidRequest` (422)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from error


def named_files(
    content_type: str, body: bytes, files: set[str], max_files: int = 1
) -> tuple[dict[str, list[bytes]], dict[str, str]]:
    """Return the files of a form by their fields, at most `max_files` of each, and all other fields as text.

    Raises `InvalidRequest` (422), also when a field comes twice.
    """
    found: dict[str, list[bytes]] = {name: [] for name in files}
    fields: dict[str, str] = {}
    for part in read_parts(content_type, body):
        if part.name in files:
            if len(found[part.name]) == max_files:
                raise InvalidRequest(f"At most {max_files} files named {part.name} are taken.", field=part.name)
            found[part.name].append(part.data)
        elif part.name in fields:
            raise InvalidRequest(f"{part.name} is given twice.", field=part.name)
        else:
            fields[part.name] = part.text()
    return found, fields


def form_schema(model: type[BaseModel] | None, files: dict[str, int], required: list[str]) -> dict[str, Any]:
    """Return the OpenAPI schema of a form: `files` with how many of each, and the fields of `model`."""
    binary = {"type": "string", "format": "binary"}
    properties: dict[str, Any] = {
        name: binary if most == 1 else {"type": "array", "items": binary, "minItems": 1, "maxItems": most}
        for name, most in files.items()
    }
    if model is not None:
        properties |= schema_of(model)["properties"]
    return {"type": "object", "required": required, "properties": properties}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model with all that it refers to in place, to stand anywhere in a document."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def in_place(part: Any) -> Any:
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            return in_place(definitions[name]) if name else {key: in_place(value) for key, value in part.items()}
        return [in_place(one) for one in part] if isinstance(part, list) else part

    found: dict[str, Any] = in_place(schema)
    return found


def _refused(error: ValidationError) -> InvalidRequest:
    problems = field_problems(error.errors())
    return InvalidRequest("; ".join(f"{one.field}: {one.message}" for one in problems[:5]), errors=problems)
