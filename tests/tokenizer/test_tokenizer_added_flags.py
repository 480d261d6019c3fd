"""lstrip, rstrip, single_word and normalized of added tokens: as tokenizers honours them; offsets, streams, files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, _streaming
from tinylm.tokenizer._added import _WHITE, Finder, Flags, _word
from tinylm.tokenizer.ladder import made_text

tokenizers = pytest.importorskip("tokenizers")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
NAMES = ["<a>", "<b>", "qx", "qxy", "b> ", "<a>qx"]
texts = st.lists(
    st.sampled_from([*"<>abqxy", " ", "  ", "\n", "é", "\u0301", "_", "1", "\x1c", "\u3000", *NAMES]), max_size=14
).map("".join)
entries = st.lists(
    st.fixed_dictionaries({"special": st.booleans(), **{flag: st.booleans() for flag in FLAGS}}),
    min_size=len(NAMES),
    max_size=len(NAMES),
)


def with_tokens(files: dict[str, bytes], flags: list[dict[str, bool]], path: Path) -> Path:
    """A tokenizer.json with NAMES as added tokens."""
    content = json.loads(files["tokenizer.json"])
    vocab = content["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    last = max([*ids, *(entry["id"] for entry in content["added_tokens"])])
    content["added_tokens"] += [
        {"id": last + 1 + number, "content": name, **flag}
        for number, (name, flag) in enumerate(zip(NAMES, flags, strict=True))
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def none(**flags: bool) -> dict[str, bool]:
    return {"special": False, **dict.fromkeys(FLAGS, False), **flags}


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def files(request: pytest.FixtureRequest) -> dict[str, bytes]:
    sizes = {"bpe": 300, "wordpiece": 200, "unigram": 400}
    text = made_text(20_000) + " <a> xqyx é b"
    return Tokenizer.train([text], vocab_size=sizes[request.param], algorithm=request.param).engine.files()


@settings(max_examples=100, deadline=None)
@given(entries, st.lists(texts, min_size=1, max_size=5))
@example([none(lstrip=True, rstrip=True), *[none(single_word=True)] * 5], ["a <a> <b>é qx qxy\u0301 y", " \n<a>  "])
@example([none(normalized=True), none(), none(single_word=True), *[none(rstrip=True)] * 3], ["<a>qx <b>  qx", "é qx"])
@example([*[none()] * 4, none(normalized=True), none(lstrip=True)], [">b> <a>qx"])  # who gets the space?
def test_ids_offsets_and_streams_are_the_references(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, flags: list[dict[str, bool]], lines: list[str]
) -> None:
    normalizes = json.loads(files["tokenizer.json"])["normalizer"] is not None
    if normalizes:
        flags = [{**flag, "normalized": False} for flag in flags]
    path = with_tokens(files, flags, tmp_path_factory.mktemp("flags") / "tokenizer.json")
    tok, reference = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for text in lines:
        wanted = reference.encode(text, add_special_tokens=False)
        assert tok.encode(text, allowed_special="all") == wanted.ids
        assert tok.count(text) == len(tok.encode(text)) == len(tok.offsets(text))
        if not any(flag["special"] for flag in flags) and tok.algorithm == "bpe":
            assert tok.offsets(text) == wanted.offsets
    text = "".join(lines) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming, "_ENOUGH", 1)
        for size in (1, 3):
            chunks = [text[at : at + size] for at in range(0, len(text), size)]
            streamed = tok.encode_stream(chunks, allowed_special="all")
            assert list(streamed) == tok.encode(text, allowed_special="all")


def test_a_normalized_token_beside_a_normalizer_is_refused(tmp_path: Path) -> None:
    trained = Tokenizer.train([made_text(5000)], vocab_size=150, algorithm="wordpiece").engine.files()
    path = with_tokens(trained, [none(normalized=True), *[none()] * 5], tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="normalized of the added token '<a>' is true"):
        Tokenizer.load(path)


def test_the_mask_of_roberta_and_the_turns_of_phi(tmp_path: Path) -> None:
    """<mask> takes the space before it, <|user|> the line end behind it, in conversations too; <s> and </s> around."""
    specials = ["<mask>", "<|user|>", "<s>", "</s>"]
    trained = Tokenizer.train([made_text(5000)], vocab_size=400, special_tokens=specials)
    content = json.loads(trained.engine.files()["tokenizer.json"])
    content["added_tokens"][0]["lstrip"] = content["added_tokens"][1]["rstrip"] = True
    content["added_tokens"][0]["normalized"] = True
    around = {name: [text, trained.special_tokens[text]] for name, text in (("cls", "<s>"), ("sep", "</s>"))}
    content["post_processor"] = {"type": "RobertaProcessing", **around, "trim_offsets": True, "add_prefix_space": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}<|user|>\n{{ m.content }}\n{% endfor %}")
    tok, reference = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "ka <mask> to <|user|>\n\n mi"
    ids = tok.encode(text, allowed_special="all")
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert tok.encode(text, allowed_special="all", add_special_tokens=True) == reference.encode(text).ids
    assert tok.decode(ids) == "ka<mask> to <|user|>mi"
    rendered = tok.apply_chat_template([{"role": "user", "content": "ka <mask>"}])
    assert rendered == [tok.special_tokens["<|user|>"], *tok.encode("ka <mask>\n")]
    assert tok.engine.files()["tokenizer.json"] == Tokenizer.load(tmp_path).engine.files()["tokenizer.json"]
    again = json.loads(tok.engine.files()["tokenizer.json"])["added_tokens"]
    assert again == content["added_tokens"]


def test_word_characters_and_white_space_are_those_of_the_reference() -> None:
    characters = [chr(code) for code in range(0x32400) if not 0xD800 <= code < 0xE000] + ["\U000e0100", "\U000e0001"]
    model = tokenizers.models.WordLevel({"[UNK]": 0}, "[UNK]")
    words, white = tokenizers.Tokenizer(model), tokenizers.Tokenizer(model)
    words.add_tokens([tokenizers.AddedToken("<x>", single_word=True, normalized=False)])
    white.add_tokens([tokenizers.AddedToken("<x>", lstrip=True, normalized=False)])
    alone = [1 in one.ids for one in words.encode_batch([f"<x>{character}" for character in characters])]
    taken = [len(one.ids) == 1 for one in white.encode_batch([f"{character}<x>" for character in characters])]
    word = _word()
    assert alone == [not word.match(character) for character in characters]
    assert taken == [character in _WHITE for character in characters]


def test_a_stream_of_tokens_that_stand_beside_letters_is_cut() -> None:
    """What is no token because of its neighbours is ordinary text: memory does not grow with the stream."""
    find = Finder({"<x>": 1}, {"<x>": Flags(single_word=True)})
    trained = Tokenizer.train([made_text(5000)], vocab_size=300)
    text = "word<x>s and " * 50
    cut = _streaming.safe_cut(text, True, trained.engine, find)
    assert len(text) - 40 < cut < len(text)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"<m>a": Flags(single_word=True), "a": Flags(), "<m>": Flags(normalized=True)}, "<m>abhello how are you"),
        ({"<x>": Flags(rstrip=True), " <y>": Flags()}, "ab<x>  <y>hello how are you"),
    ],
)
def test_a_stream_is_not_cut_where_flags_work_together(
    flags: dict[str, Flags], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name inside a longer one that letters refuse; white space that one token takes and the next begins with."""
    monkeypatch.setattr(_streaming, "_ENOUGH", 8)
    find = Finder({name: 1000 + number for number, name in enumerate(flags)}, flags)
    engine = Tokenizer.train([made_text(5000)], vocab_size=300).engine
    parts = [engine.encode(text[start:end]) if id is None else [id] for start, end, id in find.parts(text)]
    assert list(_streaming.encode_stream(iter(text), engine, find)) == [id for part in parts for id in part]


def test_a_token_inside_the_white_space_of_another(tmp_path: Path) -> None:
    """`rstrip` takes white space in which the next token begins: parts overlap, as in tokenizers."""
    content = json.loads(Tokenizer.train([made_text(5000)], vocab_size=300).engine.files()["tokenizer.json"])
    last = max(entry["id"] for entry in content["added_tokens"])
    content["added_tokens"] += [
        {"id": last + 1, "content": "<x>", **none(rstrip=True)},
        {"id": last + 2, "content": " <y>", **none()},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tok, reference = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "é <x>  <y>ka to"
    wanted = reference.encode(text, add_special_tokens=False)
    assert tok.encode(text) == wanted.ids
    assert tok.offsets(text) == wanted.offsets
    assert tok.count(text) == len(wanted.ids)
    steps = tok.explain(text)
    assert steps
    assert all(text.encode()[step.position :].startswith(step.left + step.right) for step in steps)
    for number in range(len(wanted.ids)):
        start = tok.truncate(text, number)
        assert text.startswith(start)
        assert tok.count(start) <= number
    assert tok.truncate(text, len(wanted.ids)) == text


def test_convert_says_what_is_lost(tmp_path: Path, write_json: Callable[[bytes], Path]) -> None:
    from tinylm.tokenizer._formats.convert import convert

    trained = Tokenizer.train([made_text(5000)], vocab_size=300)
    content: Any = json.loads(trained.engine.files()["tokenizer.json"])
    content["added_tokens"][0]["lstrip"] = True
    tok = Tokenizer.load(write_json(json.dumps(content).encode()))
    assert any("lstrip" in line for line in convert(tok, tmp_path / "x.tiktoken"))
