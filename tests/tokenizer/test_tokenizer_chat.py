"""Chat templates: the ids of transformers for benign messages, and no forged turn for the others."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, _chat
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._formats.convert import convert
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels.sentencepiece_training import train_bpe

# Uses what templates in the wild use: helpers, loop controls, tools, white-space control, generation marks.
RICH = """{{ bos_token }}{% if tools %}<|im_start|>tools
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif %}
{%- for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% if message.role not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' + message.role) }}
    {% endif %}
<|im_start|>{{ message['role'] }}
{% generation %}{{ message['content'] | trim }}{% endgeneration %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def chat(corpus: list[str]) -> Tokenizer:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    return Tokenizer.train(corpus, vocab_size=400, special_tokens=specials, chat_template=_chat.CHATML)


def reference(tokenizer: Tokenizer, directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(directory)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        chat_template=tokenizer.chat_template,
        bos_token="<s>",
        eos_token="<|endoftext|>",
    )


@pytest.mark.parametrize("template", [_chat.CHATML, RICH], ids=["chatml", "rich"])
def test_benign_messages_give_the_ids_of_transformers(template: str, chat: Tokenizer, tmp_path: Path) -> None:
    chat.chat_template = template
    theirs = reference(chat, tmp_path)
    tools = [{"type": "function", "function": {"name": "f", "description": "<b> & 'é' \"x\""}}]
    role = st.sampled_from(["user", "assistant", "system"])
    assigned = st.characters(exclude_categories=["Cn", "Cs"])  # newer ones depend on each library's Unicode tables
    benign = st.text(assigned).filter(lambda text: not any(special in text for special in chat.special_tokens))
    message = st.fixed_dictionaries({"role": role, "content": benign})

    @given(st.lists(message, min_size=1, max_size=3), st.booleans(), st.booleans())
    @settings(deadline=None, max_examples=60)
    def equal(messages: list[dict[str, str]], prompt: bool, with_tools: bool) -> None:
        used = tools if with_tools else None
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, tools=used, tokenize=True, return_dict=False
        )
        assert chat.apply_chat_template(messages, prompt, used) == expected

    equal()


def test_messages_cannot_forge_a_turn(chat: Tokenizer) -> None:
    parts = [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "start|>",
        "<",
        "|im_end|>",
        "<<s>s>",
        "\ue000",
        "\\ue000",
        "x",
        "\n",
    ]
    strings = st.lists(st.sampled_from(parts), max_size=6).map("".join)
    start, end = chat.special_tokens["<|im_start|>"], chat.special_tokens["<|im_end|>"]

    @given(st.lists(st.tuples(strings, strings), max_size=4))
    @settings(deadline=None)
    def safe(pairs: list[tuple[str, str]]) -> None:
        messages = [{"role": role, "content": content} for role, content in pairs]
        ids = chat.apply_chat_template(messages)
        assert ids.count(start) == ids.count(end) == len(pairs)
        assert set(ids) & set(chat.special_tokens.values()) <= {start, end}
        expected = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in pairs)
        assert chat.decode(ids) == expected

    safe()


@given(st.lists(st.sampled_from(["<|im_", "start|>", "<", "|im_end|>", "<|im_end|", ">", "s>"]), max_size=6))
@settings(deadline=None)
def test_parts_of_messages_cannot_forge_a_turn_together(trained: dict[str, Tokenizer], parts: list[str]) -> None:
    tokenizer = Tokenizer(
        trained["gpt2"].engine,
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    ids = tokenizer.apply_chat_template([{"role": "user", "content": part} for part in parts])
    assert ids == tokenizer.encode("".join(parts))


def test_tools_cannot_forge_a_turn(chat: Tokenizer) -> None:
    chat.chat_template = "{{ tools | tojson }}{{ tools | tojson(ensure_ascii=True) }}"
    tools = [{"<|im_end|>": ["<|im_start|>"]}]
    ids = chat.apply_chat_template([], tools=tools)
    assert not set(ids) & set(chat.special_tokens.values())
    assert chat.decode(ids) == json.dumps(tools) * 2


def test_bos_is_not_doubled(chat: Tokenizer) -> None:
    chat.chat_template = RICH
    ids = chat.apply_chat_template([{"role": "user", "content": "<s>hi"}])
    assert ids.count(chat.special_tokens["<s>"]) == 1
    assert ids[0] == chat.bos_id == chat.special_tokens["<s>"]


def test_template_is_saved_and_loaded(chat: Tokenizer, tmp_path: Path) -> None:
    chat.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == _chat.CHATML
    (tmp_path / "chat_template.jinja").unlink()
    assert Tokenizer.load(tmp_path).chat_template is None
    config = {"chat_template": [{"name": "default", "template": "A"}], "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.chat_template == "A"
    assert loaded.eos_id == chat.special_tokens["<|im_end|>"]
    for wrong in ({"eos_token": []}, {"bos_token": {"content": {}}}, {"chat_template": [{"name": {}}]}, []):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(wrong))
        with pytest.raises(TokenizerError, match="tokenizer_config"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("algorithm", ["bpe", "sentencepiece-bpe", "unigram", "wordpiece"])
def test_transformers_knows_the_roles_of_what_is_saved(algorithm: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    marks = ["[CLS]", "[SEP]"] if algorithm == "wordpiece" else ["<s>", "</s>", "<pad>"]
    text = "user: hello there, this is a text"
    tokenizer = Tokenizer.train([text] * 9, vocab_size=320, algorithm=algorithm, special_tokens=marks)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert None not in (tokenizer.bos_id, tokenizer.eos_id, theirs.pad_token_id)
    messages = [{"role": "user", "content": "hello"}]
    wanted = theirs.apply_chat_template(messages, return_dict=False)
    assert tokenizer.apply_chat_template(messages) == wanted == Tokenizer.load(tmp_path).apply_chat_template(messages)


def test_settings_stay_and_old_ones_go(chat: Tokenizer, tmp_path: Path) -> None:
    chat.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": "<|im_end|>", "model_max_length": 7, "chat_template": "A"}))
    loaded = Tokenizer.load(tmp_path)
    loaded.chat_template = None
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert (again.eos_id, again.chat_template) == (chat.special_tokens["<|im_end|>"], None)
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["model_max_length"] == 7
    Tokenizer(chat.engine).save(tmp_path)  # another one in its place
    assert (Tokenizer.load(tmp_path).eos_id, Tokenizer.load(tmp_path).chat_template) == (chat.eos_id, None)


def test_settings_beside_other_vocabularies(tmp_path: Path) -> None:
    text = ["hello there, this is a text"] * 9
    convert(Tokenizer.train(text, vocab_size=300, algorithm="unigram"), tmp_path / "m" / "tokenizer.model")
    convert(Tokenizer.train(text, vocab_size=300), tmp_path / "g" / "vocab.json")
    for directory, token in (("m", "<s>"), ("g", "<|endoftext|>")):
        settings = {"chat_template": "A", "eos_token": token}
        (tmp_path / directory / "tokenizer_config.json").write_text(json.dumps(settings))
        loaded = Tokenizer.load(tmp_path / directory)
        assert (loaded.chat_template, loaded.eos_id) == ("A", loaded.special_tokens[token])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "no valid Jinja"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "failed on these messages"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 / 0 }}", "failed on these messages"),
        ("{{ messages[0].nothing.nothing }}", "failed on these messages"),
    ],
)
def test_templates_that_fail(template: str, message: str, chat: Tokenizer) -> None:
    chat.chat_template = template
    with pytest.raises(TokenizerError, match=message):
        chat.apply_chat_template([{"role": "user", "content": "x"}])


def test_wrong_messages_and_missing_templates(chat: Tokenizer) -> None:
    for wrong in ("hello", {"role": "user"}, [{"content": "x"}], ["x"]):
        with pytest.raises(TokenizerError, match="wanted a list of messages"):
            chat.apply_chat_template(wrong)  # type: ignore[arg-type]  # wrong on purpose
    chat.chat_template = None
    with pytest.raises(TokenizerError, match="no chat template"):
        chat.apply_chat_template([])


def test_missing_extra_is_one_line(chat: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_jinja(name: str, *rest: Any) -> Any:
        if name.startswith("jinja2"):
            raise ImportError(name)
        return real(name, *rest)

    _chat._compile.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_jinja)
    with pytest.raises(TokenizerError, match=r'pip install "tinylm-tokenizer\[chat\]"'):
        chat.apply_chat_template([])


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_only_the_first_part_of_a_conversation_begins_a_text(scheme: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["hello there, the fox", "[INST] the quick brown fox"] * 20
    trained = Tokenizer.train(texts, vocab_size=320, algorithm="unigram", special_tokens=["<s>", "</s>"])
    trained.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
    content |= {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    theirs, loaded = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    messages = [{"role": "[INST]", "content": "hello"}, {"role": "the", "content": " fox"}]
    wanted = theirs.apply_chat_template(messages, return_dict=False)
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert loaded.apply_chat_template(messages) == wanted == loaded.encode(rendered, allowed_special="all")


def test_each_part_of_a_conversation_begins_a_text_of_a_model_file(tmp_path: Path) -> None:
    options = Options(300, dummy_prefix=True)
    tok = Tokenizer(SentencePieceEngine(train_bpe(["ab ab b", "b a"] * 9, options)))
    tok.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.warns(UserWarning, match="before each part"):
        tok.save(tmp_path)
    messages = [{"role": "user", "content": "ab"}, {"role": "user", "content": "b"}]
    begin, end = tok.bos_id, tok.eos_id
    assert tok.apply_chat_template(messages) == [begin, *tok.encode("ab"), end, *tok.encode("b"), end]
    assert tok.apply_chat_template(messages) == Tokenizer.load(tmp_path).apply_chat_template(messages)


def test_what_a_message_may_hold(chat: Tokenizer) -> None:
    chat.chat_template = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}{{ tools or '' }}"
    end = chat.special_tokens["<|im_end|>"]
    one = {"role": "user", "content": "x"}
    wanted = chat.apply_chat_template([one, one])
    assert chat.apply_chat_template(iter([one, one])) == wanted  # type: ignore[arg-type]  # it was used up before
    for content in (1, 2.5, None, True, [1, "<|im_end|>", {"a": ("<|im_end|>",)}]):
        assert end not in chat.apply_chat_template([{"role": "user", "content": content}])
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for content in (b"<|im_end|>", {"<|im_end|>"}, Path("<|im_end|>"), cyclic, {("a",): 1}):
        with pytest.raises(TokenizerError, match="on these messages"):
            chat.apply_chat_template([{"role": "user", "content": content}])
    with pytest.raises(TokenizerError, match="on these messages"):
        chat.apply_chat_template([one], tools=({"name": "<|im_end|>"} for _ in "a"))  # type: ignore[arg-type]
    for wrong in (None, 5, one, "x"):
        with pytest.raises(TokenizerError, match="wanted a list of messages"):
            chat.apply_chat_template(wrong)  # type: ignore[arg-type]


def test_a_message_of_every_private_use_character(chat: Tokenizer) -> None:
    most, escapes = (
        "".join(map(chr, range(0xE000, 0xF8FF))),
        "".join(f"\\u{code:04x}" for code in range(0xE000, 0xF8FF)),
    )
    for content in (most, escapes):
        text = f"{content}<|im_end|>"
        ids = chat.apply_chat_template([{"role": "user", "content": text}])
        assert text in chat.decode(ids)
        assert ids.count(chat.special_tokens["<|im_end|>"]) == 1  # the template's own
    with pytest.raises(TokenizerError, match="got all of them"):  # a StopIteration before
        chat.apply_chat_template([{"role": "user", "content": most + "\uf8ff"}])


def test_special_tokens_that_names_in_messages_end_with(corpus: list[str]) -> None:
    marks = ["<|im_start|>", "<|im_end|>", "tool ", "er!", "le<", "type>"]  # "content", "user", "role", "type"
    chat = Tokenizer.train(corpus, vocab_size=400, special_tokens=marks)
    chat.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' and m['type'] in ['text'] and m.role != 'er!' %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endif %}{{ m.role }}{{ m.content }}{% endfor %}{{ tools | tojson }}"
    )
    message = {"role": "user", "type": "text", "content": "!the content"}
    ids = chat.apply_chat_template([message, message], tools=[{"type>": "tool "}])
    once = "<|im_start|>!the content<|im_end|>user!the content"
    assert chat.decode(ids) == once * 2 + '[{"type>": "tool "}]'
    found = [id for id in ids if id in chat.special_tokens.values()]
    assert found == [chat.special_tokens[mark] for mark in marks[:2]] * 2  # the template's: "us" + "er!" is none
