"""The transformer: masks, positions, taps, logits_at, initialisation, torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig, attention, initialize
from tinylm.model.attention import attend, attend_with_pattern, causal_mask, padding_mask

PRESETS = ("gpt2", "llama", "mistral", "qwen3", "qwen3-moe")


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_future_changes_nothing(preset, small, ids):
    model, tokens = small(preset, depth=3), ids(2, 20)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    before, after = model(tokens), model(changed)
    close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_tokens(preset, side, small, ids):
    model = small(preset, kv_heads=4 if preset == "gpt2" else 2)
    rows, width = [ids(1, n)[0] for n in (3, 9, 14)], 14
    batch, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        batch[i, place], mask[i, place] = row, True
    logits = model(batch, mask=mask)
    for i, row in enumerate(rows):
        close(logits[i, mask[i]], model(row[None])[0])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("taps", [None, {}])
def test_rows_without_any_real_token_are_finite(preset, taps, small, ids):
    mask = torch.tensor([[False] * 6, [True] * 6])
    model = small(preset)
    logits = model(ids(2, 6), mask=mask, taps=taps)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_explicit_pattern_gives_what_the_fast_attention_gives(data):
    batch, kv, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    keys = data.draw(st.integers(1, 17))
    queries = data.draw(st.integers(1, keys))
    q = torch.randn(batch, kv * group, queries, 8)
    k, v = torch.randn(2, batch, kv, keys, 8)
    mask = None
    if data.draw(st.booleans()):
        real = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch * keys, max_size=batch * keys)))
        mask = padding_mask(real.view(batch, keys), queries)
    out, pattern = attend_with_pattern(q, k, v, mask)
    close(attend(q, k, v, mask), out, atol=1e-5)
    close(pattern.sum(-1), torch.ones(batch, kv * group, queries))
    assert pattern.masked_select(~causal_mask(queries, keys, q.device)).eq(0).all()


@settings(max_examples=25, deadline=None)
@given(time=st.integers(2, 40), kv_heads=st.integers(1, 2), group=st.integers(1, 3), block=st.integers(1, 50))
def test_attentions_backward_by_hand(time, kv_heads, group, block):
    """In float64, and in the 16 bits that choose it."""
    torch.manual_seed(time)
    q = torch.randn(2, time, kv_heads * group, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, kv_heads, time, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    upstream = torch.randn(2, kv_heads * group, time, 8, dtype=torch.float64)
    wanted = torch.autograd.grad(attend(q, k, v), (q, k, v), upstream)
    before, attention.BLOCK = attention.BLOCK, block
    try:
        got = torch.autograd.grad(attention._AttentionOnCPU.apply(q, k, v), (q, k, v), upstream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = attend(q.float(), k.float(), v.float())
        narrow = torch.autograd.grad(rounded, (q, k, v), upstream.to(rounded.dtype))
    finally:
        attention.BLOCK = before
    assert "_AttentionOnCPU" in rounded.grad_fn.name()
    for one, other, coarse in zip(got, wanted, narrow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
        assert (coarse - other).norm() <= 0.02 * other.norm() + 1e-12


@pytest.mark.parametrize("preset", PRESETS)
def test_taps_record_the_documented_names_and_change_nothing(preset, small, ids):
    import tinylm.model.transformer as module

    model, tokens, taps = small(preset), ids(2, 7), {}
    logits = model(tokens, taps=taps)
    close(logits, model(tokens))
    lines = [line.split()[0] for line in module.__doc__.splitlines() if line.startswith("    ")]
    documented = {name.replace("<i>", str(layer)) for name in lines for layer in range(model.config.depth)}
    routers = {f"blocks.{layer}.mlp.router" for layer in range(model.config.depth)}
    assert set(taps) == (documented if model.config.experts else documented - routers)
    stream = taps["embed"]
    for layer in range(model.config.depth):
        stream = stream + taps[f"blocks.{layer}.attention.output"] + taps[f"blocks.{layer}.mlp"]
        close(stream, taps[f"blocks.{layer}.output"])
        assert taps[f"blocks.{layer}.attention.pattern"].shape == (2, 4, 7, 7)
    close(taps["final_norm"], model.hidden(tokens))
    assert taps["logits"] is logits


def test_logits_at(small, ids):
    model, tokens = small("qwen3"), ids(2, 9)
    logits = model(tokens)
    close(model(tokens, logits_at=[-1]), logits[:, -1:])
    close(model(tokens, logits_at=torch.tensor([4, 0])), logits[:, [4, 0]])
    close(model(tokens, logits_at=torch.tensor([[8], [3]])), torch.stack([logits[0, [8]], logits[1, [3]]]))


def test_logits_at_places_that_are_not_there_are_refused(small, ids):
    model, tokens = small("qwen3"), ids(2, 9)
    close(model(tokens, logits_at=torch.tensor([[-1], [3]])), model(tokens, logits_at=torch.tensor([[8], [3]])))
    for wrong, match in (([99], "got 99"), ([-10], "got -1"), ([0.5], "whole"), ([], "whole"), ([[1]] * 3, "shape")):
        with pytest.raises(ModelError, match=match):
            model(tokens, logits_at=wrong)


@pytest.mark.parametrize("preset", PRESETS)
def test_positions_given_are_used(preset, small, ids):
    model, tokens = small(preset), ids(1, 8)
    close(model(tokens, positions=torch.arange(8)), model(tokens))
    close(model(tokens, positions=torch.arange(8)[None]), model(tokens))
    far = model(tokens, positions=torch.arange(8) * 3)
    assert not torch.allclose(far, model(tokens))


def test_rope_sees_only_distances(small, ids):
    model, tokens = small("llama"), ids(1, 8)
    close(model(tokens, positions=torch.arange(8) + 40), model(tokens), atol=1e-4)


def test_ids_that_do_not_fit_are_refused(small):
    model = small("qwen3")
    with pytest.raises(ModelError, match="got 97"):
        model(torch.tensor([[1, 97]]))
    with pytest.raises(ModelError, match="got -1"):
        model(torch.tensor([[1, -1]]))
    with pytest.raises(ModelError, match="shape"):
        model(torch.tensor([1, 2]))
    with pytest.raises(ModelError, match="whole numbers"):
        model(torch.tensor([[1.0, 2.0]]))
    for dtype in (torch.bool, torch.int8, torch.int16):
        with pytest.raises(ModelError, match="whole numbers"):
            model(torch.zeros(1, 2, dtype=dtype))
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ModelError, match="at least one of each"):
            model(torch.zeros(shape, dtype=torch.long))
    for positions in (torch.arange(3), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2)):
        with pytest.raises(ModelError, match="positions"):
            model(torch.tensor([[1, 2]]), positions=positions)
    with pytest.raises(ModelError, match="mask"):
        model(torch.tensor([[1, 2]]), positions=torch.arange(2), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ModelError, match="context"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ModelError, match="context"):
        model(torch.zeros(1, 2, dtype=torch.long), positions=torch.tensor([3, 64]))
    with pytest.raises(ModelError, match="mask"):
        model(torch.zeros(1, 2, dtype=torch.long), mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ModelError, match="mask"):
        model(torch.zeros(1, 2, dtype=torch.long), mask=torch.ones(1, 2))


@pytest.mark.parametrize("preset", PRESETS)
def test_initialisation_follows_its_rules(preset):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset(preset, 500, 4, tie_embeddings=False))
    for residual, shrink in (("scaled", 1 / math.sqrt(8)), ("zero", 0.0)):
        initialize(model, residual)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                wanted, mean = 0.0, 0.0
            elif parameter.ndim == 1:
                wanted, mean = 0.0, 1.0
            elif name in ("embed.weight", "positions.weight", "head.weight"):
                wanted, mean = 0.02, 0.0
            else:
                wanted, mean = 0.02 * math.sqrt(768 / parameter.shape[-1]), 0.0
            if name.endswith(("attention.output.weight", "mlp.down.weight")):
                wanted *= shrink
            assert parameter.std().item() == pytest.approx(wanted, rel=max(0.03, 3 / parameter.numel() ** 0.5)), name
            assert parameter.mean().item() == pytest.approx(
                mean, abs=max(1e-3, 4 * wanted / parameter.numel() ** 0.5)
            ), name


def test_initialisation_by_seed_and_by_wrong_name(small):
    model = small("qwen3")
    initialize(model, generator=torch.Generator().manual_seed(3))
    first = model.embed.weight.clone()
    initialize(model, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, model.embed.weight)
    with pytest.raises(ModelError, match="residual"):
        initialize(model, "identity")


def test_activations_keep_their_size_at_any_width():
    sizes = []
    for width in (64, 256):
        torch.manual_seed(0)
        model = Transformer(TransformerConfig.preset("llama", 200, 2, width=width, context=64))
        taps: dict[str, torch.Tensor] = {}
        model(torch.randint(0, 200, (4, 64)), taps=taps)
        sizes.append(taps["blocks.0.mlp"].std().item())
    assert 0.5 < sizes[0] / sizes[1] < 2


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_can_be_followed_without_memory(preset):
    with torch.device("meta"):
        model = Transformer(TransformerConfig.preset(preset, 1000, 12))
        assert model(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, 1000)


def kept_for_backward(model, tokens):
    """Bytes that autograd keeps between forward and backward, weights aside; the loss; every gradient."""
    kept, weights = {}, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    loss.backward()
    return sum(kept.values()), loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_activation_checkpointing_keeps_less_and_changes_no_bit(preset, autocast, small, ids):
    model, tokens = small(preset, depth=6), ids(2, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole, loss, gradients = kept_for_backward(model, tokens)
        model.activation_checkpointing = True
        less, again, others = kept_for_backward(model, tokens)
    assert torch.equal(loss, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert less < whole / 2
    taps = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(tokens, taps=taps)
        recorded = dict(taps)
        logits.sum().backward()
        assert all(taps[name] is value for name, value in recorded.items())  # not filled again in the backward


@pytest.mark.parametrize(
    ("preset", "checkpointing"),
    [("gpt2", False), ("mistral", False), ("qwen3", True), ("qwen3-moe", True)],
)
def test_compiles_without_a_graph_break(preset, checkpointing, small, ids):
    torch._dynamo.reset()
    model, tokens = small(preset, depth=1), ids(2, 40)  # longer than Mistral's window of 32
    model.activation_checkpointing = checkpointing
    plain = model.loss(tokens, tokens)
    plain.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(tokens, tokens)
    loss.backward()
    close(loss, plain)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(tokens), model(tokens))


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_training_as_it_is_done_compiles_without_a_graph_break(preset, small, ids):
    """In bfloat16 by autocast, with several documents in a row."""
    torch._dynamo.reset()
    model, tokens = small(preset, depth=1), ids(2, 12)
    model.separate_documents = True
    targets = tokens.roll(-1, 1)
    targets[0, 4] = -100
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(tokens, targets)
        plain = model.loss(tokens, targets)
    loss.backward()
    torch.testing.assert_close(loss, plain, atol=1e-3, rtol=1e-3)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), size=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rmsnorm_and_its_backward_by_hand(rows, size, scale):
    from tinylm.model.norm import RMSNorm

    norm = RMSNorm(size, eps=1e-6).double()
    x = (torch.randn(rows, 2, size, dtype=torch.float64) * scale).requires_grad_()
    norm.weight.data.normal_()
    wanted = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(norm(x), wanted, atol=1e-12, rtol=1e-12)
    got = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    for mine, theirs in zip(got, torch.autograd.grad(wanted, (x, norm.weight), upstream), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10 / scale, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_separate_documents_in_a_row_have_the_losses_of_each_alone(preset, small, ids):
    """A target of -100 ends a document; padding is a document of one token, without a loss."""
    model = small(preset).double()
    lengths = [5, 1, 9, 3]
    rows = [ids(1, n) for n in lengths]
    wanted = [torch.cat([row[:, 1:], torch.full((1, 1), -100)], dim=1) for row in rows]
    row, targets = torch.cat(rows, dim=1), torch.cat(wanted, dim=1)
    alone = torch.cat([model.loss(i, t, reduction="none") for i, t in zip(rows, wanted, strict=True)], dim=1)
    model.separate_documents = True
    together = model.loss(torch.cat([row, row.flip(1)]), torch.cat([targets, torch.full_like(row, -100)]), "none")
    close(together[:1], alone, atol=1e-12)
    assert torch.all(together[1] == 0)
    open_end = targets.clone()
    open_end[0, -1] = 3  # the last document goes on behind the row
    close(model.loss(row, open_end, reduction="none")[:, :-1], alone[:, :-1], atol=1e-12)
    model.separate_documents = False
    assert not torch.allclose(model.loss(row, targets, reduction="none"), alone)
