"""Bits per character against cross-entropy summed token by token; and models and data that do not belong together."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.training import TokenDataset, TrainingError, bits_per_character, evaluation, prepare
from tinylm.training.evaluation import evaluate, measures


@pytest.fixture(scope="module")
def dataset(house):
    return TokenDataset(house.data, "validation")


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(3)
    model = Transformer(TransformerConfig.preset("qwen3", dataset.vocab_size, 1, context=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # far from uniform, so that a shift by one would show
    return model


@torch.no_grad()
def directly(model: Transformer, ids: list[int], starts: range | list[int], context: int) -> list[float]:
    """Nats of every token, window by window and token by token, from the logits."""
    nats = []
    for start in starts:
        window = ids[start : start + context]
        inputs = [ids[start - 1] if start else 0, *window[:-1]]
        logits = model.double()(torch.tensor([inputs]))[0]
        nats += [float(-torch.log_softmax(row, -1)[target]) for row, target in zip(logits, window, strict=True)]
    model.float()
    return nats


@pytest.mark.parametrize("context", [None, 1, 7, 16])
def test_every_token_counts_once(model, dataset, context):
    ids = dataset.ids(0, dataset.tokens).tolist()
    length = context or 16
    nats = directly(model, ids, range(0, len(ids), length), length)
    assert len(nats) == dataset.tokens
    wanted = sum(nats) / math.log(2) / dataset.characters
    assert bits_per_character(model, dataset, context) == pytest.approx(wanted, rel=1e-5)


def test_batches_do_not_change_the_figure(model, dataset, monkeypatch):
    whole = bits_per_character(model, dataset)
    monkeypatch.setattr("tinylm.training.evaluation._TOKENS_AT_ONCE", 16)
    assert bits_per_character(model, dataset) == pytest.approx(whole, rel=1e-6)


def test_an_estimate_is_of_windows_spread_evenly(model, dataset):
    ids = dataset.ids(0, dataset.tokens).tolist()
    starts = list(range(0, len(ids), 16))
    chosen = starts[:: -(-len(starts) // 5)]
    assert len(chosen) <= 5
    nats = directly(model, ids, chosen, 16)
    wanted = sum(nats) / len(nats) * dataset.tokens / math.log(2) / dataset.characters
    assert bits_per_character(model, dataset, max_windows=5) == pytest.approx(wanted, rel=1e-5)
    assert bits_per_character(model, dataset, max_windows=10**9) == bits_per_character(model, dataset)


def test_a_uniform_model_needs_log2_of_the_vocabulary(model, dataset):
    uniform = Transformer(model.config)
    with torch.no_grad():
        for parameter in uniform.parameters():
            parameter.zero_()
    wanted = math.log2(dataset.vocab_size) * dataset.tokens / dataset.characters
    assert bits_per_character(uniform, dataset) == pytest.approx(wanted, rel=1e-6)


def test_the_models_mode_is_left_as_it_was(model, dataset):
    for mode in (True, False):
        model.train(mode)
        bits_per_character(model, dataset, max_windows=1)
        assert model.training is mode


def test_a_checkpoint_is_judged_on_its_own_tokenizers_data(model, house, other_house, dataset, tmp_path):
    model.save(tmp_path / "m", {"tokenizer_sha256": dataset.tokenizer_sha256})
    assert evaluate(tmp_path / "m", house.data, device="cpu") == pytest.approx(bits_per_character(model, dataset))
    train = bits_per_character(model, TokenDataset(house.data, "train"))
    assert evaluate(tmp_path / "m", house.data, "train", "cpu") == pytest.approx(train)
    with pytest.raises(TrainingError, match="another tokenizer"):
        evaluate(tmp_path / "m", other_house.data, device="cpu")
    with pytest.raises(TrainingError, match="train or validation"):
        evaluate(tmp_path / "m", house.data, "test", "cpu")


def test_a_foreign_model_with_too_few_ids_is_refused(house, tmp_path):
    Transformer(TransformerConfig.preset("qwen3", 100, 1, context=16)).save(tmp_path / "m")
    with pytest.raises(TrainingError, match="at most 100 token ids"):
        evaluate(tmp_path / "m", house.data, device="cpu")
    with pytest.raises(ModelError, match=r"config\.json"):
        evaluate(tmp_path / "nowhere", house.data, device="cpu")


def test_a_split_of_one_token(model, house, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"x")
    prepare([house.text], house.tokenizer, tmp_path / "data", tmp_path / "x.txt")
    dataset = TokenDataset(tmp_path / "data", "validation")
    assert dataset.tokens == 2  # x and the end of the text
    wanted = sum(directly(model, dataset.ids(0, dataset.tokens).tolist(), [0], 16)) / math.log(2)
    assert bits_per_character(model, dataset) == pytest.approx(wanted, rel=1e-5)
    shutil.rmtree(tmp_path / "data")


def test_an_interval_of_means_is_as_wide_as_the_central_limit_says():
    nats = np.random.Generator(np.random.Philox(5)).normal(3.0, 0.5, 400)
    draws = evaluation._bootstrap(np.column_stack([nats, np.ones(400)]))
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    reach = 1.96 * nats.std() / math.sqrt(400)
    assert high - low == pytest.approx(2 * reach, rel=0.1)  # 1,000 draws know a quantile to about 4 %
    assert (low + high) / 2 == pytest.approx(nats.mean(), abs=reach / 5)


def test_every_window_counts_its_own_bytes_and_characters(model, house, dataset):
    starts = list(range(0, dataset.tokens, 16))
    tokens, size, characters = evaluation._texts(dataset, starts, 16).sum(0).tolist()
    text = house.text.read_bytes().decode()[-dataset.characters :]
    assert (tokens, size, characters) == (dataset.tokens, len(text.encode()), len(text))


def test_a_single_window_has_no_interval(model, house, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"x")
    prepare([house.text], house.tokenizer, tmp_path / "data", tmp_path / "x.txt")
    model.save(tmp_path / "m")
    found, _ = measures(tmp_path / "m", tmp_path / "data", device="cpu")
    assert (found["perplexity"].low, found["perplexity"].high) == (None, None)
