"""The same ids everywhere: tokenizer → data set → checkpoint → LLM, and in Hugging Face's reader of the same file."""

import hashlib

import numpy as np
import pytest


@pytest.fixture
def tokenizer(house):
    from tinylm.tokenizer import Tokenizer

    return Tokenizer.load(house.tokenizer)


def test_the_data_set_holds_the_tokenizers_ids_of_the_text(house, tokenizer) -> None:
    text = house.text.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    train = np.load(house.tokens / "train-00000.npy", allow_pickle=False).tolist()
    validation = np.load(house.tokens / "validation-00000.npy", allow_pickle=False).tolist()
    assert train == tokenizer.encode(text[:cut])  # the document goes on in the other split: it has no end here
    assert validation == [*tokenizer.encode(text[cut:]), tokenizer.eos_id]
    assert np.load(house.tokens / "train-00000.documents.npy", allow_pickle=False).tolist() == [0]


def test_one_tokenizer_travels_with_its_bytes_unchanged(house) -> None:
    places = [house.tokenizer, house.tokens, house.model, house.model / "steps" / "00000012"]
    digests = [hashlib.sha256((place / "tokenizer.json").read_bytes()).hexdigest() for place in places]
    assert len(set(digests)) == 1


def test_the_llm_reads_and_writes_the_same_ids(house, tokenizer) -> None:
    from tinylm.inference import LLM, SamplingParams

    prompt = "THE KING.\nBane lotí,"
    (answer,) = LLM(str(house.model), device="cpu").generate(prompt, SamplingParams(max_tokens=16, temperature=0))
    assert answer.prompt_token_ids == tokenizer.encode(prompt)
    out = answer.outputs[0]
    ids = [i for i in out.token_ids if i != tokenizer.eos_id]
    assert out.text == tokenizer.decode(ids).rstrip("�")


def test_tokenizers_reads_the_checkpoints_file_with_the_same_ids(house, tokenizer) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(house.model / "tokenizer.json"))
    for text in (house.text.read_text(encoding="utf-8"), "don't  stop\t\n\n", "日本語 🙂 naïve", "<|endof|> 1234567"):
        assert theirs.encode(text).ids == tokenizer.encode(text)
