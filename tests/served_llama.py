"""Served Llama: a seed -> a base folder of two small layers that says ASCII letters, and adapters that change what it says."""

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, RANK = 32, 4


def make_base(folder: Path) -> Path:
    """Write config, safetensors and tokenizer; every token but the end of a turn is one printable letter."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]  # byte-level BPE's space and line feed
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters) + 2,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.3,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # One feature is the same for every token and speaks against ending the turn, so answers are seldom short.
    model.get_input_embeddings().weight.data[:, 0] = 3.0
    model.get_output_embeddings().weight.data[-2:] = 0.0
    model.get_output_embeddings().weight.data[-2:, 0] = -3.0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_adapter(store: Path, base: Any, seed: int) -> str:
    """Publish an adapter of seeded noise; gives its name."""
    import torch
    from safetensors.torch import save_file

    from models.adapters import write

    def save(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(2):
            for module, out in (("q_proj", HIDDEN), ("o_proj", HIDDEN)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator)
                tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": ["q_proj", "o_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))

    store.mkdir(parents=True, exist_ok=True)
    return write(store, save, {"base_model": base.id})
