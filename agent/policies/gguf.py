"""GGUF files as plain Hugging Face model folders.

A GGUF file holds quantised weights, the tokenizer and the chat template in one file. Engines and
trainers want the opposite: a folder with bf16 safetensors and no quantisation entry. `convert`
makes the one from the other. It knows nothing of catalogs, caches or networks.
"""

from pathlib import Path
from typing import Any

from agent.policies import plain_model

#: `tokenizer.ggml.pre` values whose tokenizers split every digit off before the byte-level rule.
#: transformers reads any byte-level GGUF tokenizer as GPT-2's, which joins the blanks before a
#: number differently ("\n\n1" would become three tokens instead of two).
_DIGIT_SPLITTING = frozenset({"smollm"})


def convert(gguf_file: Path, out: Path) -> None:
    """Write the model in `gguf_file` to the existing folder `out` (see `plain_model.save`).

    The same file and library versions give the same bytes. Needs about 1.5 GiB of memory for a
    model of 135 M parameters.

    Raises:
        OSError, safetensors.SafetensorError: a file cannot be read or written.
        ValueError: transformers cannot read this GGUF architecture.
    """
    with plain_model.quiet():
        model = _plain_model(gguf_file)
        tokenizer = _tokenizer(gguf_file, model.config.max_position_embeddings)
        plain_model.save(model, tokenizer, out)


def _plain_model(gguf_file: Path) -> Any:
    """The model in float32, rebuilt from its config so that no trace of quantisation stays."""
    import torch
    from transformers import AutoModelForCausalLM

    quantised: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    )
    fields = quantised.config.to_dict()
    for transient in ("quantization_config", "_model_name_or_path", "dtype"):
        fields.pop(transient, None)
    plain: Any = type(quantised)(type(quantised.config)(**fields))
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    return plain


def _tokenizer(gguf_file: Path, context_length: int) -> Any:
    """The tokenizer and chat template of the file, with the model's own pre-tokenisation."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, model_max_length=context_length
    )
    if _pre_tokenizer_name(gguf_file) in _DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    return tokenizer


def _pre_tokenizer_name(gguf_file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf_file).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field is not None else ""
