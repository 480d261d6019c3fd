"""tinylm.inference: `StructuredOutputsParams`, what form a text must have. vLLM's names; no torch here.

It only holds and checks the values; `structured.py` makes a grammar of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinylm.inference._errors import InferenceError

_REFUSED = {
    "grammar": "use json, regex or choice",
    "structural_tag": "use json, regex or choice",
    "disable_fallback": "there is one library, and nothing to fall back to",
    "disable_additional_properties": 'write "additionalProperties": false into the schema',
    "whitespace_pattern": "say in a regex what is wanted",
}


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """One of them:

    - `json`: a JSON schema (an object, or its text); the text is a JSON value that it admits. What llguidance does not
      know of JSON Schema is refused by name.
    - `regex`: a regular expression for the whole text (Rust's syntax: no look-around, no back-references).
    - `choice`: one of these texts.
    - `json_object=True`: any JSON object.

    `disable_any_whitespace=True`: JSON without white space between its parts, where a weak model would write much.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    def __new__(cls, **values: Any) -> "StructuredOutputsParams":
        for name in values:
            if name in _REFUSED:
                raise InferenceError(f"StructuredOutputsParams({name}=...) is not supported: {_REFUSED[name]}")
            if name not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                raise InferenceError(f"StructuredOutputsParams has no parameter {name!r}; it has {known}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "choice") if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise InferenceError(f"structured outputs: wanted one of json, regex, choice and json_object, got {given}")
        if self.disable_any_whitespace and not {"json", "json_object"} & {*given}:
            raise InferenceError(f"structured outputs: disable_any_whitespace is for JSON, not for {given[0]}")
        if self.json is not None and not isinstance(self.json, str | Mapping):
            raise InferenceError(f"structured outputs: json must be a JSON schema, got {self.json!r:.80}")
        if self.regex is not None and not (isinstance(self.regex, str) and self.regex):
            raise InferenceError(f"structured outputs: regex must be text that is not empty, got {self.regex!r:.80}")
        if self.choice is not None:
            fits = isinstance(self.choice, Sequence) and not isinstance(self.choice, str) and len(self.choice) > 0
            if not fits or not all(isinstance(text, str) and text for text in self.choice):
                raise InferenceError("structured outputs: choice must be a list of texts that are not empty")
