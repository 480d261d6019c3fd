"""tinylm.inference: what the body of a chat may hold: messages, tools, and which of them must be called.

What it has in common with a completion's is in `openai_api.py`; the form of a call in `openai_tools.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from tinylm.inference import openai_tools
from tinylm.inference._errors import InferenceError
from tinylm.inference.openai_api import Body, Count, Logprobs, Part
from tinylm.inference.structured_params import StructuredOutputsParams


class TextPart(Part):
    type: Literal["text"]
    text: str


class FunctionCall(Part):
    name: str
    arguments: str


class ToolCall(Part):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Part):
    """As in OpenAI's API, text only. What the template does with names and calls of tools is up to the checkpoint."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    # what OpenAI's client makes of an answer that has none of them: a conversation gives it back
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None

    def plain(self) -> dict[str, Any]:
        """What a chat template reads; the text in one piece."""
        told = self.model_dump(exclude_none=True, exclude={"annotations"})
        if isinstance(self.content, list):
            told["content"] = "".join(part.text for part in self.content)
        if "content" not in told and self.tool_calls is None:
            raise InferenceError(f"messages: the content of a message with the role {self.role!r} is missing")
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if name in told and self.role != role:
                raise InferenceError(f"messages: {name} only in a message with the role {role!r}")
        return told


class Function(Part):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class FunctionName(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"]
    function: FunctionName


class ChatBody(Body):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None

    def conversation(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """(messages, tools) of `LLM.chat_prompt`."""
        if self.tool_choice == "auto" and not self.tools:
            raise InferenceError('tool_choice: "auto" only with tools')
        shown = [] if self.tool_choice == "none" else self.tools or []
        if any(tool.function.strict for tool in shown) and self.called() is None:
            raise InferenceError(
                'tools: strict only with tool_choice "required" or a named function: else a call is text'
            )
        return [m.plain() for m in self.messages], [t.model_dump(exclude_none=True) for t in shown] or None

    def called(self) -> openai_tools.Schemas | None:
        """The functions of which one must be called; None where the answer is text."""
        if self.tool_choice is None or self.tool_choice in ("auto", "none"):
            return None
        functions = [tool.function for tool in self.tools or []]
        schemas = {function.name: function.parameters for function in functions}
        if len(schemas) < len(functions):
            raise InferenceError("tools: two functions have the same name")
        name = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return openai_tools.chosen(schemas, name)

    def structure(self) -> StructuredOutputsParams | None:
        """As above, or that of the call that the answer must be."""
        form, called = super().structure(), self.called()
        if called is None:
            return form
        if form is not None:
            raise InferenceError("tool_choice asks for a call of a tool: give no response_format or structured_outputs")
        return StructuredOutputsParams(json=openai_tools.schema_of_call(called))

    def _values(self) -> dict[str, Any]:
        """Without a limit an answer may fill the context, as with OpenAI."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InferenceError("max_tokens is the old name of max_completion_tokens: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise InferenceError("top_logprobs: only with logprobs = true")
        wanted = {"logprobs": self.top_logprobs or 0} if self.logprobs else {"logprobs": None}
        return {"max_tokens": self.max_completion_tokens, **super()._values(), **wanted}
