"""The answer's text as it reads after its prompt: spaces of SentencePiece tokenizers, characters cut in half."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, SamplingParams, StructuredOutputsParams  # noqa: E402  # after importorskip
from tinylm.tokenizer import Tokenizer  # noqa: E402

TEXT = "The cook says: good soup! The king says: yes.\nWho sings? The bird sings in the tree.\n"


@pytest.fixture(scope="module")
def sentencepiece(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = Path(shutil.copytree(make_checkpoint(), tmp_path_factory.mktemp("sentencepiece") / "model"))
    Tokenizer.train([TEXT * 30], vocab_size=290, algorithm="sentencepiece-bpe").save(folder)
    file = json.loads((folder / "tokenizer.json").read_text())  # as Llama's: "▁" before a text, taken off again
    file["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, file["normalizer"]]}
    file["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    (folder / "tokenizer.json").write_text(json.dumps(file))
    config = json.loads((folder / "config.json").read_text())
    del config["tinylm"]["tokenizer_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    return LLM(str(folder), dtype="float32", device="cpu")


def after(llm: LLM, prompt: str, text: str) -> list[int]:
    """The ids of `text` where it follows `prompt`."""
    return llm.tokenizer.encode(prompt + text)[len(llm.tokenizer.encode(prompt)) :]


def test_the_first_word_keeps_the_space_before_it(sentencepiece: LLM, write: Callable[[list[int]], None]) -> None:
    written = after(sentencepiece, "The bird", " sings in the tree.")
    assert sentencepiece.tokenizer.id_to_bytes(written[0]).startswith(b" ")
    for logprobs in (None, 0):
        write(written)
        answer = sentencepiece.generate("The bird", SamplingParams(max_tokens=len(written), logprobs=logprobs))[0]
        assert answer.outputs[0].text == " sings in the tree."
    write(written)
    assert "".join(sentencepiece.stream("The bird", SamplingParams(max_tokens=len(written)))) == " sings in the tree."
    write(written)
    stopped = sentencepiece.generate("The bird", SamplingParams(stop=" sings"))[0].outputs[0]
    assert (stopped.text, stopped.stop_reason) == ("", " sings")


def test_at_the_very_beginning_there_is_no_space(sentencepiece: LLM, write: Callable[[list[int]], None]) -> None:
    written = after(sentencepiece, "", "sings in")
    write(written)
    answer = sentencepiece.generate("", SamplingParams(max_tokens=len(written)))[0].outputs[0]
    assert answer.text == "sings in"


def test_a_choice_is_what_the_grammar_saw(sentencepiece: LLM) -> None:
    """The text is the bytes that were matched, a space in front of the first word included."""
    for choice in (" yes", "yes"):
        params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=[choice]), max_tokens=20)
        for prompt in ("The king says:", ""):
            assert sentencepiece.generate(prompt, params)[0].outputs[0].text == choice


def test_half_a_character_of_the_prompt_is_completed(llm: LLM, write: Callable[[list[int]], None]) -> None:
    pieces = [i for b in "é!".encode() for i in range(256) if llm.tokenizer.id_to_bytes(i) == bytes([b])]
    write(pieces[1:])
    answer = llm.generate({"prompt_token_ids": [*llm.tokenizer.encode("na"), pieces[0]]}, SamplingParams(max_tokens=2))
    assert answer[0].outputs[0].text == "é!"


def test_echo_and_offsets_read_on_as_well(sentencepiece: LLM, write: Callable[[list[int]], None]) -> None:
    pytest.importorskip("fastapi")
    from tinylm.inference.openai_answers import Answer
    from tinylm.inference.openai_api import CompletionBody

    written = after(sentencepiece, "The bird", " sings in the")
    prompt = sentencepiece.prompt_ids("The bird")
    for echo, text, offset in ((True, "The bird sings in the", 8), (False, " sings in the", 0)):
        body = CompletionBody(model="tiny", prompt="The bird", echo=echo, logprobs=0, max_tokens=len(written))
        texts = sentencepiece.engine.add_request("a", prompt, body.sampling())
        answer = Answer("a", "tiny", body, texts, sentencepiece.tokenizer)
        write(written)
        while sentencepiece.engine.busy:
            for event in sentencepiece.engine.step():
                answer.take(event)
        told = answer.whole()["choices"][0]
        assert told["text"] == text
        lengths = [len(sentencepiece.tokenizer.id_to_bytes(i)) for i in written]
        assert told["logprobs"]["text_offset"][-len(written) :] == [
            offset + sum(lengths[:place]) for place in range(len(written))
        ]
