"""tinylm.inference: the chat page of `tinylm-infer serve`: one document, made of the sources here.

`chat.html` is the frame, `chat.css` the looks, `store.js` what the browser keeps, `client.js` talks to the server,
`chat.js` is the conversation, `settings.js` the knobs. The policy sent with it lets the browser run these scripts only
and ask this server only, so text of a model or a user cannot become code. Not here: answers (`server.py`).
"""

import base64
import hashlib
import html
from functools import cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from tinylm.inference.llm import LLM

SCRIPTS = ("store.js", "client.js", "chat.js", "settings.js")


@cache
def _source(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def router(llm: LLM, name: str) -> APIRouter:
    """`/`: the page for the model that requests call `name`."""
    made = APIRouter()
    document, headers = page(llm, name)

    @made.get("/", include_in_schema=False)
    async def chat() -> HTMLResponse:
        return HTMLResponse(document, headers=headers)

    return made


def page(llm: LLM, name: str) -> tuple[str, dict[str, str]]:
    """(the document, headers to send with it) for a model that requests call `name`."""
    style, script = _source("chat.css"), "\n".join(map(_source, SCRIPTS))
    config = llm.model.config
    facts = {
        "model": name,
        "context": llm.engine.context,
        "parameters": config.parameter_count(),
        "tuned": "yes" if llm.tuned_for_chat else "no",
    }
    attributes = " ".join(f'data-{key}="{html.escape(str(value))}"' for key, value in facts.items())
    document = _source("chat.html")
    for place, text in (("data-facts", attributes), ("/* style */", style), ("/* script */", script)):
        document = document.replace(place, text, 1)
    policy = {
        "default-src": "'none'",
        "script-src": f"'{_digest(script)}'",
        "style-src": f"'{_digest(style)}'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Cache-Control": "no-cache",  # the next server at this address may have another model
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return document, headers


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
