"""The chat page in a real browser (`nox -s browser`), answered by a real server.

The model is tiny and untrained: what it "writes" is set by `script`, which can also hold it in mid-answer. That the
page loads nothing from elsewhere, and that no script of it fails, is checked by the `page` fixture for each test.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinylm.inference import LLM
from tinylm.tokenizer import Tokenizer

pytestmark = pytest.mark.browser
PATIENCE = 60_000  # milliseconds; a loaded machine


@pytest.fixture
def expect() -> Callable[[Any], Any]:
    return pytest.importorskip("playwright.sync_api").expect


class Script:
    """script("text") is the answer from now on; script("text", hold=5) waits before its token number 5 for go()."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.going = tokenizer, threading.Event()

    def __call__(self, text: str, hold: int | None = None) -> None:
        self.going.clear()
        self.hold = hold
        self.ids = [*self.tokenizer.encode(text), self.tokenizer.special_tokens["<|im_end|>"]]

    def go(self) -> None:
        self.going.set()

    def choose(self, _: Any, sequences: Any) -> list[int]:
        ids, hold = self.ids, self.hold
        if hold in [sequence.drawn for sequence in sequences]:
            self.going.wait(60)
        return [ids[min(sequence.drawn, len(ids) - 1)] for sequence in sequences]


@pytest.fixture
def script(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    made = Script(tokenizer)
    monkeypatch.setattr("tinylm.inference.sampler.choose", made.choose)
    yield made
    made.go()


@pytest.fixture(scope="module")
def address(make_checkpoint: Callable[..., Path], served: Any) -> Iterator[str]:
    llm = LLM(str(make_checkpoint(context=96)), dtype="float32", device="cpu")
    llm.tuned_for_chat = True
    with served(llm) as client:
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture
def chat(page: Any, address: str) -> Any:
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    return page


def send(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Any) -> Any:
    """The last answer, once it has ended."""
    found = page.locator("article.assistant").last
    found.locator("footer").wait_for()
    return found


def test_an_answer_streams_in_and_its_tokens_and_speed_are_shown(chat: Any, script: Script, expect: Any) -> None:
    script("good soup! Who sings?", hold=6)
    send(chat, "What is there?")
    text = chat.locator("article.assistant .text")
    expect(text).to_have_text(re.compile("^goo"), timeout=PATIENCE)
    assert "sings" not in text.inner_text()
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    expect(chat.locator("#status")).to_have_text(re.compile("^about [1-6] tokens"))
    script.go()
    assert answer(chat).locator(".text").inner_text() == "good soup! Who sings?"
    note = chat.locator(".note").inner_text()
    count = len(script.ids)
    assert re.fullmatch(rf"{count} tokens · \d+\.\d tokens/s · first after \d+\.\d\d s", note), note
    assert re.fullmatch(r"\d+ of 96 tokens of context", chat.locator("#status").inner_text())
    expect(chat.get_by_role("button", name="Send")).to_be_visible()


def test_escape_stops_an_answer_and_the_next_one_comes(chat: Any, script: Script, expect: Any) -> None:
    script("good soup! Who sings?", hold=6)
    send(chat, "What is there?")
    expect(chat.locator("article.assistant .text")).to_have_text(re.compile("^goo"), timeout=PATIENCE)
    chat.keyboard.press("Escape")
    stopped = answer(chat)
    assert "good soup! Who".startswith(stopped.locator(".text").inner_text())
    assert stopped.locator(".note").inner_text().endswith("stopped")
    script.go()
    script("The king")
    stopped.get_by_role("button", name="Regenerate").click()
    expect(answer(chat).locator(".text")).to_have_text("The king")
    assert chat.locator("article").count() == 2


def test_the_knobs_and_the_system_prompt_are_sent(chat: Any, script: Script) -> None:
    script("good")
    chat.get_by_role("button", name="Settings", exact=True).click()
    for label, value in {"System prompt": "Be a cook.", "Top-k": "7", "Max tokens": "9", "Seed": "3"}.items():
        chat.get_by_label(label).fill(value)
    for label, value in {"Temperature": "0.5", "Top-p": "0.9", "Min-p": "0.1"}.items():
        chat.get_by_label(label).fill(value)
    chat.get_by_label("API key").fill("secret")
    with chat.expect_request("**/v1/chat/completions") as sent:
        send(chat, "Who?")
    body = json.loads(sent.value.post_data)
    told = [{"role": "system", "content": "Be a cook."}, {"role": "user", "content": "Who?"}]
    assert body.pop("messages") == told
    assert (body.pop("model"), body.pop("stream"), body.pop("stream_options")) == (
        "tiny",
        True,
        {"include_usage": True},
    )
    assert body == {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "top_k": 7, "max_tokens": 9, "seed": 3}
    assert sent.value.headers["authorization"] == "Bearer secret"
    assert answer(chat).locator(".text").inner_text() == "good"  # the server takes all of them
    chat.reload()
    assert chat.get_by_label("Top-k").input_value() == "7"
    assert "System: Be a cook." in chat.locator("#log").inner_text()


def test_a_setting_out_of_range_is_not_sent(chat: Any, expect: Any) -> None:
    chat.get_by_role("button", name="Settings", exact=True).click()
    chat.get_by_label("Max tokens").fill("0")
    send(chat, "Who?")
    expect(chat.get_by_label("Max tokens")).to_be_focused()
    assert chat.locator("article").count() == 0
    assert chat.get_by_label("Message", exact=True).input_value() == "Who?"


def test_text_is_never_markup(chat: Any, script: Script) -> None:
    text = '<img src="x" onerror="a"><b>b</b>&amp;'
    script(text)
    send(chat, text)
    assert answer(chat).locator(".text").inner_text() == text
    assert chat.locator("article.user .text").inner_text() == text
    assert chat.locator("article img, article b, nav b").count() == 0
    assert chat.title() == "tiny · TinyLM"


def test_conversations_are_kept_renamed_switched_and_deleted(chat: Any, script: Script, expect: Any) -> None:
    script("soup")
    send(chat, "First question")
    answer(chat)
    chat.get_by_role("button", name="New chat", exact=True).click()
    send(chat, "Second question")
    answer(chat)
    chat.reload()
    titles = chat.locator("#conversations .title")
    expect(titles).to_have_text(["Second question", "First question"])
    expect(chat.locator("article.user")).to_have_text("Second question")
    titles.nth(1).click()
    expect(chat.locator("article.user")).to_have_text("First question")
    chat.locator("#conversations li").nth(1).hover()
    chat.get_by_role("button", name="Rename First question").click()
    chat.get_by_label("Title").fill("Of soups")
    chat.keyboard.press("Enter")
    expect(titles).to_have_text(["Second question", "Of soups"])
    chat.on("dialog", lambda dialog: dialog.accept())
    chat.locator("#conversations li").nth(1).hover()
    chat.get_by_role("button", name="Delete Of soups").click()
    expect(titles).to_have_text(["Second question"])
    expect(chat.locator("article.user")).to_have_text("Second question")
    chat.reload()
    expect(titles).to_have_text(["Second question"])


def test_a_server_that_is_gone_is_said_and_asked_again(chat: Any, script: Script, expect: Any) -> None:
    script("soup")
    chat.route("**/v1/**", lambda route: route.abort())
    send(chat, "Are you there?")
    expect(chat.get_by_role("alert")).to_contain_text("does not answer")
    expect(chat.get_by_role("alert")).to_contain_text("tinylm-infer serve")
    chat.unroute("**/v1/**")
    chat.get_by_role("button", name="Try again").click()
    assert answer(chat).locator(".text").inner_text() == "soup"
    expect(chat.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "headers", "message", "told", "offer"),
    [
        (429, {"Retry-After": "7"}, "too many wait", "try again in 7 s", "Try again"),
        (401, {}, "no key", "asks for an API key", "Enter the key"),
        (404, {}, "there is no model 'tiny' here", "no model 'tiny' here. Reload", "Reload"),
        (500, {}, "internal error", "refused (500): internal error", "Try again"),
    ],
)
def test_a_refusal_is_said_in_the_servers_words(
    chat: Any, expect: Any, status: int, headers: dict[str, str], message: str, told: str, offer: str
) -> None:
    body = json.dumps({"error": {"message": message}})
    chat.route("**/v1/**", lambda route: route.fulfill(status=status, headers=headers, body=body))
    send(chat, "Who?")
    expect(chat.get_by_role("alert")).to_contain_text(told)
    expect(chat.get_by_role("alert").get_by_role("button", name=offer)).to_be_visible()


def test_a_key_is_asked_for_and_sent(page: Any, checkpoint: Path, served: Any, script: Script, expect: Any) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cpu")
    llm.tuned_for_chat = True
    with served(llm, api_key="secret") as client, contextlib.closing(page.context):
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{client.port}/")
        script("soup")
        send(page, "Who?")
        page.get_by_role("button", name="Enter the key").click()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("secret")
        page.get_by_role("button", name="Try again").click()
        assert answer(page).locator(".text").inner_text() == "soup"


def test_a_stream_that_breaks_keeps_what_was_written(chat: Any, expect: Any) -> None:
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]})
    body = (
        f": a comment\n\ndata: {chunk}\n\ndata: "
        + json.dumps({"error": {"message": "the server is stopping"}})
        + "\n\n"
    )
    chat.route("**/v1/**", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))
    send(chat, "Who?")
    expect(chat.get_by_role("alert")).to_contain_text("broke off: the server is stopping")
    assert chat.locator("article.assistant .text").inner_text() == "Half"


def test_a_full_context_leaves_out_the_oldest_and_says_so(chat: Any, script: Script, expect: Any) -> None:
    for question in (
        "The cook says: good soup!",
        "The king says: good soup!",
        "Who sings? The bird sings in the tree.",
    ):
        script("The bird sings in the tree.")
        send(chat, question)
        note = answer(chat).locator(".note").inner_text()
    assert "the oldest 2 messages were left out" in note or "the oldest 4 messages were left out" in note
    script("x")
    send(chat, "z" * 200)
    expect(chat.get_by_role("alert")).to_contain_text("shorten the prompt")


def test_the_keyboard_is_enough(chat: Any, script: Script, expect: Any) -> None:
    script("soup")
    message = chat.get_by_label("Message", exact=True)
    expect(message).to_be_focused()
    chat.keyboard.type("one")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("two")
    chat.keyboard.press("Enter")
    answer(chat)
    assert chat.locator("article.user .text").inner_text() == "one\ntwo"
    expect(message).to_be_focused()
    chat.keyboard.press("Tab")
    assert chat.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    names = chat.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].map("
        "e => e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent || '')"
    )
    assert all(names), names
    chat.get_by_role("button", name="Settings", exact=True).focus()
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("button", name="Close settings")).to_be_focused()
    chat.keyboard.press("Tab")
    expect(chat.get_by_label("System prompt")).to_be_focused()
    chat.get_by_role("button", name="Close settings").press("Enter")
    expect(chat.get_by_role("button", name="Settings", exact=True)).to_be_focused()
    chat.keyboard.press("Enter")
    chat.keyboard.press("Escape")
    expect(chat.locator("#settings")).to_be_hidden()


def test_light_and_dark(chat: Any) -> None:
    def dark() -> bool:
        paper = chat.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", paper)[:3])) < 200

    chat.emulate_media(color_scheme="dark")
    assert dark()
    chat.get_by_role("button", name="light and dark").click()
    assert not dark()
    chat.reload()
    assert not dark()  # what was chosen stays
    chat.emulate_media(color_scheme="light")
    chat.get_by_role("button", name="light and dark").click()
    assert dark()


def test_a_phone_shows_all_of_it(chat: Any, script: Script, expect: Any) -> None:
    chat.set_viewport_size({"width": 390, "height": 844})
    script("soup " + "w" * 40)
    send(chat, "q" * 20)
    answer(chat)
    assert chat.evaluate("document.documentElement.scrollWidth <= 390")
    expect(chat.locator("#sidebar")).to_be_hidden()
    chat.get_by_role("button", name="Conversations").click()
    expect(chat.get_by_role("button", name="Delete " + "q" * 20)).to_be_visible()
    for _ in range(8):  # the page below the panel takes no keys
        chat.keyboard.press("Tab")
        assert chat.evaluate("document.activeElement.closest('main')") is None
    chat.keyboard.press("Escape")
    expect(chat.locator("#sidebar")).to_be_hidden()
    chat.get_by_role("button", name="Conversations").click()
    chat.locator("#conversations .title").click()
    expect(chat.locator("#sidebar")).to_be_hidden()
    expect(chat.get_by_label("Message", exact=True)).to_be_focused()
    send_button = chat.get_by_role("button", name="Send").bounding_box()
    assert send_button["x"] + send_button["width"] <= 390


def test_a_base_model_continues_text_and_the_page_says_so(
    page: Any, make_checkpoint: Callable[..., Path], served: Any, script: Script, expect: Any
) -> None:
    llm = LLM(str(make_checkpoint()), dtype="float32", device="cpu")
    with served(llm) as client, contextlib.closing(page.context):
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{client.port}/")
        expect(page.locator("#welcome-note")).to_be_visible()
        script(" is good")
        send(page, "The soup")
        answer(page)
        script(" too")
        with page.expect_request("**/v1/completions") as sent:
            send(page, "The king")
        assert json.loads(sent.value.post_data)["prompt"] == "The soup is good\nThe king"
        assert answer(page).locator(".text").inner_text() == " too"
