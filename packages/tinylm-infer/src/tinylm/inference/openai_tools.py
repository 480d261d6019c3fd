"""tinylm.inference: a call of a tool that a chat must end in: `tool_choice` "required", or a function by name.

The arguments are structured output: JSON that the function's `parameters` admit, or there is no call. What a model
writes of its own accord ("auto") stays text. Where the form is put together with others: `openai_api.py`; where the
call is sent: `openai_answers.py`.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from tinylm.inference._errors import InferenceError

Schemas = Mapping[str, Mapping[str, Any] | None]  # parameters by function


def chosen(schemas: Schemas, name: str | None) -> Schemas:
    """Those that may be called: all, or the one named. InferenceError where there is none."""
    if name is None:
        if not schemas:
            raise InferenceError('tool_choice: "required" only with tools')
        return schemas
    if name not in schemas:
        raise InferenceError(f"tool_choice: there is no function {name!r} among the tools")
    return {name: schemas[name]}


def schema_of_call(schemas: Schemas) -> dict[str, Any]:
    """Of one function the schema of its arguments; of several that of {"name": ..., "arguments": ...}."""
    arguments = {
        name: {"type": "object", **(schema or {"additionalProperties": False})} for name, schema in schemas.items()
    }
    if len(arguments) == 1:
        return next(iter(arguments.values()))
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in arguments
    ]
    return {"anyOf": calls, "$defs": {name: _moved(schema, name) for name, schema in arguments.items()}}


def _moved(schema: Any, name: str) -> Any:
    """A schema that stood alone, with its references to itself, below "$defs" of another."""
    if isinstance(schema, list):
        return [_moved(part, name) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(part, name) for key, part in schema.items()}
    if isinstance(reference := moved.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{name}{reference[1:]}"
    return moved


def tool_call(text: str, schemas: Schemas) -> dict[str, Any]:
    """The call in OpenAI's form; `text` is what `schema_of_call(schemas)` admits."""
    if len(schemas) == 1:
        name, arguments = next(iter(schemas)), text
    else:
        call = json.loads(text)
        name, arguments = call["name"], json.dumps(call["arguments"], ensure_ascii=False)
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": {"name": name, "arguments": arguments}}
