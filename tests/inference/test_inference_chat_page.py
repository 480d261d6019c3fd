"""The chat page as it is sent: one document that needs nothing else, under a policy that lets only its own script run.

How it behaves is tested in a browser (test_inference_pages_chat.py).
"""

import base64
import contextlib
import hashlib
import re
from typing import Any

from tinylm.inference import LLM, chat_page


def test_the_document_stands_alone_and_its_policy_fits(client: Any) -> None:
    with contextlib.closing(client.send("/")) as connection:
        answer = connection.getresponse()
        assert (answer.status, answer.headers.get_content_type()) == (200, "text/html")
        policy, document = answer.headers["content-security-policy"], answer.read().decode()
    assert 'data-model="tiny"' in document
    assert re.findall(r"(?:src|href)\s*=\s*[\"'](?!#|data:,)[^\"']*", document) == []
    assert set(re.findall(r"https?://[^\s\"'`]+", document)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|@import|url\(", document)
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_a_models_name_cannot_become_markup(long_llm: LLM) -> None:
    document, _ = chat_page.page(long_llm, '"><script>alert(1)</script>')
    assert document.count("<script>") == 1
    assert 'data-model="&quot;&gt;&lt;script&gt;' in document
