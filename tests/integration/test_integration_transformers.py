"""Everything goes in and out: our checkpoint writes the same tokens in transformers, and theirs the same here."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

TOKENS = 64
SIZES = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}


def greedy(llm, ids: list[int], count: int) -> list[int]:
    from tinylm.inference import SamplingParams

    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    return llm.generate({"prompt_token_ids": ids}, params)[0].outputs[0].token_ids


def their_greedy(model, ids: list[int], count: int) -> list[int]:
    """Their model, token by token without a cache: only logits are asked of it."""
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(ids) :]


def test_our_checkpoint_writes_the_same_in_transformers(house) -> None:
    from tinylm.inference import LLM

    llm = LLM(str(house.model), device="cpu", dtype="float32")
    prompt = llm.tokenizer.encode("ANNA.\n")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(house.model, dtype=torch.float32).eval()
    assert greedy(llm, prompt, TOKENS) == their_greedy(theirs, prompt, TOKENS)


def test_our_tokenizer_and_template_open_in_transformers(house) -> None:
    from tinylm.tokenizer import Tokenizer

    theirs = transformers.AutoTokenizer.from_pretrained(house.model)
    ours = Tokenizer.load(house.model)
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "THE KING."}]
    for end in (False, True):
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=end, tokenize=True, return_dict=False)
        assert ours.apply_chat_template(messages, add_generation_prompt=end) == wanted


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=128),
        transformers.LlamaConfig(**LLAMA),
        transformers.Qwen3Config(**LLAMA, head_dim=16),
    ],
    ids=["gpt2", "llama", "qwen3"],
)
def test_their_checkpoint_writes_the_same_tokens_here(config, tmp_path) -> None:
    from tinylm.inference import LLM
    from tinylm.model import Transformer, generate

    torch.manual_seed(0)
    config.initializer_range = 0.3  # spread the logits, so that no two tokens tie within rounding
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    prompt = [5, 17, 2, 90]
    wanted = their_greedy(theirs, prompt, TOKENS)
    assert len(set(wanted)) > 3
    llm = LLM(str(tmp_path), device="cpu", dtype="float32", skip_tokenizer_init=True)
    assert greedy(llm, prompt, TOKENS) == wanted
    model = Transformer.load(tmp_path, dtype="float32", device="cpu")
    assert generate(model, torch.tensor([prompt]), TOKENS)[0].tolist() == wanted
