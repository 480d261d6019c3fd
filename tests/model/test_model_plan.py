"""`plan`: the peak memory of a real training step within 10 % of what is planned, and figures that add up."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.model.plan import Layout, activations, serving_memory, training_memory, training_seconds

SMALL = {"width": 128, "heads": 4, "head_dim": 32, "mlp_width": 320, "context": 64}
SHAPES = [
    ("gpt2", 2, {}),
    ("gpt2", 6, {"width": 64, "heads": 1, "head_dim": 64, "mlp_width": 256}),
    ("qwen3", 3, {"kv_heads": 2}),
    ("llama", 4, {"tie_embeddings": False}),
    ("qwen3-moe", 2, {"mlp_width": 160}),
]


def model_of(preset, depth, fields, vocab_size=4096):
    torch.manual_seed(0)
    return Transformer(TransformerConfig.preset(preset, vocab_size, depth, **SMALL | fields))


def step_of(model, dtype, batch):
    ids = torch.randint(0, model.config.vocab_size, (batch, model.config.context))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        with contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", getattr(torch, dtype)):
            loss = model.loss(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measured_peak(step):
    """The most that torch's allocator has handed out at once within a step, in bytes."""
    step()  # the optimiser's state
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    live = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("preset", "depth", "fields"), SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_steps_peak_is_within_a_tenth(preset, depth, fields, dtype, checkpointing):
    model = model_of(preset, depth, fields)
    model.activation_checkpointing = checkpointing
    batch = 6
    peak = measured_peak(step_of(model, dtype, batch))
    plan = training_memory(model.config, batch * model.config.context, dtype, checkpointing)
    there_before = plan["weights"] + plan["optimiser (AdamW)"]
    assert plan["peak"] - there_before == pytest.approx(peak, rel=0.1)  # what the step adds, which is the harder half
    assert plan["peak"] == pytest.approx(there_before + peak, rel=0.1)


@pytest.mark.parametrize(("preset", "depth", "fields"), SHAPES)
def test_activations_are_what_autograd_keeps(preset, depth, fields):
    model = model_of(preset, depth, fields)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 4096, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(ids, ids)
    head = 4 * 4096 * model.config.width + 4 * ids.numel() * model.config.width
    assert loss.requires_grad
    assert activations(model.config, ids.numel()) == pytest.approx(sum(kept.values()) - head, rel=0.02)


def test_memory_and_time_add_up():
    config = TransformerConfig.preset("llama", 1000, 2)
    count = config.parameter_count()
    memory = training_memory(config, 1, "bfloat16")
    assert (memory["weights"], memory["gradients"], memory["optimiser (AdamW)"]) == (4 * count, 4 * count, 8 * count)
    assert 16 * count <= memory["peak"] <= sum(memory.values()) - memory["peak"]
    assert serving_memory(config, 10, "float16")["key/value cache"] == 2 * 2 * config.depth * config.width * 10
    assert training_seconds(config, 10, 2.0) == 10 * config.flops_per_token() / 2
    assert training_seconds(config, 10, 2.0, checkpointing=True) == pytest.approx(
        4 / 3 * training_seconds(config, 10, 2.0)
    )
    with pytest.raises(ModelError, match="dtype"):
        training_memory(config, 1, "int3")
    with pytest.raises(ModelError, match="at least one token"):
        training_memory(config, 0)
    with pytest.raises(ModelError, match="above 0"):
        training_seconds(config, 10, 0.0)


def test_more_devices_hold_less_each():
    config = TransformerConfig.preset("llama", 8192, 8, kv_heads=4)
    alone = training_memory(config, 4096, "bfloat16")
    assert training_memory(config, 4096, "bfloat16", layout=Layout(data=8)) == alone
    cut = training_memory(config, 4096, "bfloat16", layout=Layout(fsdp=4))
    assert cut["optimiser (AdamW)"] == pytest.approx(alone["optimiser (AdamW)"] / 4)
    assert cut["activations"] == alone["activations"]
    split = training_memory(config, 4096, "bfloat16", layout=Layout(tensor=4))
    assert alone["activations"] / 4 < split["activations"] < alone["activations"]
    again = training_memory(config, 4096, "bfloat16", checkpointing=True)
    assert again["activations"] < alone["activations"] / 4
    assert again["peak"] < alone["peak"]
    assert Layout(2, 4, 1).devices == 8
    with pytest.raises(ModelError, match="tensor to divide"):
        training_memory(config, 4096, layout=Layout(tensor=3))
    with pytest.raises(ModelError, match="fsdp to be a whole number"):
        Layout(fsdp=0)


def test_the_plan_counts_the_heads_own_chunk():
    from tinylm.model import loss, plan

    here = loss.CHUNK_NUMBERS, loss.CHUNK_BYTES, loss.PASS_NUMBERS, loss.COLUMNS
    assert here == (plan._CHUNK, plan._CHUNK_BYTES, plan._PASS, plan._COLUMNS)  # plan.py does not import torch
