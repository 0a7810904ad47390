"""A model under DeepSpeed: how every trainer of this project gets its engine.

Works on one CPU process exactly as on several GPUs: gloo or nccl, ZeRO stages 0 to 3, LoRA through
peft or full weights. Knows nothing of losses and data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from kg.errors import PolicyUnavailableError
from rl import ranks, tree_attention
from rl.attention import register, require_plain
from rl.losses import entropy_from_logits
from rl.recipe import Lora, Offload, Optimizer


def load_trainable(
    folder: Path,
    lora: Lora | None,
    dtype: torch.dtype,
    init: Path | None = None,
    longest: int | None = None,
    attention: Literal["packed", "tree"] = "packed",
    checkpointing: bool = False,
) -> TargetLogprobs:
    """The model of a folder, ready to train.

    Args:
        folder: the base model.
        lora: adapters to add; None trains all weights.
        dtype: of the weights.
        init: an adapter to go on from instead of a new one.
        longest: tokens of the longest row or path that it will see; None for as many as the model reads.
        attention: over packed rows (see `rl.attention`) or a token tree (`rl.tree_attention`).
        checkpointing: compute activations again in the backward pass instead of keeping them.

    Raises:
        PolicyUnavailableError: the folder does not hold a model.
        UsageError: a model whose computation differs from what is trained here.
    """
    model = _loaded(folder, dtype, longest, attention, checkpointing)
    return TargetLogprobs(_adapted(model, lora, init).train())


def load_critic(
    folder: Path, lora: Lora | None, dtype: torch.dtype, checkpointing: bool = False
) -> TokenValues:
    """The model of a folder with a head that predicts returns, over token trees; see `load_trainable`.

    Raises:
        PolicyUnavailableError: the folder does not hold a model.
        UsageError: a model whose computation differs from what is trained here.
    """
    model = _loaded(folder, dtype, None, "tree", checkpointing)
    model.lm_head = torch.nn.Identity()
    return TokenValues(_adapted(model, lora, None)).to(dtype).train()


def _loaded(
    folder: Path,
    dtype: torch.dtype,
    longest: int | None,
    attention: Literal["packed", "tree"],
    checkpointing: bool,
) -> Any:
    from transformers import AutoModelForCausalLM

    register()
    tree_attention.register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=attention, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise PolicyUnavailableError(
            f"no model in {folder}: {error}", "agent models list"
        ) from error
    reads = int(model.config.get_text_config().max_position_embeddings)
    require_plain(model.config, reads if longest is None else longest)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


class TargetLogprobs(torch.nn.Module):
    """Log-probabilities of chosen tokens under a causal language model.

    The vocabulary projection, the largest matrix of a small model, is computed only at the positions
    that are asked for, in chunks. While a gradient is wanted, no more than one chunk of logits is kept:
    the backward pass computes the others again.

    Args:
        model: a transformers causal language model, with or without adapters.
        chunk: most positions of one projection; as many as make 16 million logits when 0.

    Under ZeRO 3 every call of the projection gathers its matrix from all processes, in the backward pass
    again: the processes then agree on the number of chunks, whatever the number of their targets.
    """

    def __init__(self, model: torch.nn.Module, chunk: int = 0) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.chunk = chunk or max(64, _LOGITS // int(config.get_text_config().vocab_size))

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        predictors: torch.Tensor | None = None,
        entropy: bool = False,
    ) -> torch.Tensor:
        """float32[m]: log p(ids[t] | what t sees), in nats, for each t in `targets`.

        Args:
            ids: int64[n], rows end to end (their lengths are set by `row_lengths`), or a token tree
                (set by `on_tree`).
            positions: int64[n], position within the own row or path.
            targets: int64[m], indices into `ids`, none of them the first of a row.
            predictors: int64[m], the token before each target; the one in front of it when None.
            entropy: also give the entropy of each prediction, in nats: float32[2, m].
        """
        hidden, base = _hidden(self.model, ids, positions), _below(self.model)
        before = targets - 1 if predictors is None else predictors
        count = self._chunks(len(targets), base.lm_head, ids.device)
        in_parts = torch.is_grad_enabled() and count > 1

        def read(source: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
            return _read(base.lm_head(hidden[source]).float(), ids[part], entropy)

        parts = [
            checkpoint(read, source, part, use_reentrant=False) if in_parts else read(source, part)
            for source, part in zip(
                torch.tensor_split(before, count), torch.tensor_split(targets, count), strict=True
            )
        ]
        return torch.cat(parts, dim=-1)

    def _chunks(self, targets: int, head: torch.nn.Module, device: torch.device) -> int:
        """Into how many parts the targets go: as many as every process needs, where the head's matrix is
        shared out; a process with fewer targets then has smaller parts, or empty ones."""
        own = max(1, math.ceil(targets / self.chunk))
        apart = any(hasattr(parameter, "ds_tensor") for parameter in head.parameters())
        return ranks.most(own, device) if apart else own


_LOGITS = 2**24


class TokenValues(torch.nn.Module):
    """A prediction of the return before each token: a causal language model with a linear head on its
    last hidden state. A new head predicts 0 everywhere.

    Args:
        model: a transformers causal language model, with or without adapters; its vocabulary projection
            is not used and may be gone.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.head = _Head(config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, sources: torch.Tensor
    ) -> torch.Tensor:
        """float32[m]: the value after each token in `sources`.

        Args:
            ids: int64[n], a token tree (set by `on_tree`).
            positions: int64[n], position within the own path.
            sources: int64[m], indices into `ids`.
        """
        found: torch.Tensor = self.head(_hidden(self.model, ids, positions)[sources])
        return found[:, 0]


class _Head(torch.nn.Linear):
    """Computes in float32 whatever its type is: bfloat16 would round a return to 8 bits."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return torch.nn.functional.linear(hidden.float(), weight, bias)


def _hidden(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n, hidden]: last hidden states."""
    base = _below(model)
    again = tree_attention.captured() if base.is_gradient_checkpointing else {}
    found: torch.Tensor = base.get_decoder()(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, **again
    ).last_hidden_state[0]
    return found


def _below(model: Any) -> Any:
    """A model without its adapters' wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _read(logits: torch.Tensor, ids: torch.Tensor, entropy: bool) -> torch.Tensor:
    logprobs = -torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    return torch.stack([logprobs, entropy_from_logits(logits)]) if entropy else logprobs


def _adapted(model: Any, lora: Lora | None, init: Path | None) -> Any:
    """A model with the adapters that it is to be trained with, if any."""
    if lora is None:
        return model
    from peft import LoraConfig, PeftModel, get_peft_model

    if init is not None:
        going_on: torch.nn.Module = PeftModel.from_pretrained(
            model, str(init), is_trainable=True, autocast_adapter_dtype=False
        )
        return going_on
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    adapted: torch.nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return adapted


class Adapter(NamedTuple):
    """A LoRA adapter as peft's files hold it.

    Attributes:
        tensors: by peft's names.
        fields: of its configuration, JSON values.
    """

    tensors: dict[str, torch.Tensor]
    fields: dict[str, Any]


def adapter_of(engine: Any, base: str) -> Adapter | None:
    """What a learner trains where that is an adapter; None for full weights.

    Args:
        engine: of DeepSpeed around a `TargetLogprobs`; under ZeRO 3 call this, and use what it gives,
            within `whole` of the adapter's parameters.
        base: what the adapter's configuration names as its base.
    """
    model = engine.module.model
    if not hasattr(model, "peft_config"):
        return None
    from peft import get_peft_model_state_dict

    fields = model.active_peft_config.to_dict() | {"base_model_name_or_path": base}
    fields |= {"inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}
    return Adapter(get_peft_model_state_dict(model, save_embedding_layers=False), plain)


def start_engine(
    model: torch.nn.Module,
    optimizer: Optimizer,
    steps: int,
    dtype: torch.dtype,
    zero: int,
    offload: Offload = "none",
) -> Any:
    """A DeepSpeed engine with AdamW, warm-up and cosine decay over `steps` optimizer steps.

    Gradient accumulation is the caller's: the engine steps when it is told to. Gradients of bfloat16
    passes are added up in float32: a sum with eight bits stands still once it is some 200 times a
    summand. DeepSpeed does that from ZeRO stage 1 on alone: a bfloat16 engine has that stage at least.

    Args:
        model: to train.
        optimizer: its hyperparameters.
        steps: of the optimizer, for the learning rate.
        dtype: of the model.
        zero: DeepSpeed's stage.
        offload: what lies in the host's memory instead of the GPU's.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    ranks.join()
    import deepspeed

    trainable = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trainable,
        config=_config(optimizer, dtype, zero, offload),
        lr_scheduler=lambda inner: LambdaLR(inner, lambda step: _rate(optimizer, step, steps)),
    )
    return engine


def _config(
    optimizer: Optimizer, dtype: torch.dtype, zero: int, offload: Offload = "none"
) -> dict[str, Any]:
    narrow = dtype is torch.bfloat16
    places: dict[str, Any] = {"stage": max(zero, 1) if narrow else zero}
    if offload != "none":
        places["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        places["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": narrow},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": places,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
            },
        },
    }


def _rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Share of the peak learning rate at a step."""
    warm = max(1, round(optimizer.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, steps - warm))
    return optimizer.final + (1 - optimizer.final) * 0.5 * (1 + math.cos(math.pi * progress))


def keeps_states(engine: Any, folder: Path) -> bool:
    """Whether a checkpoint holds the optimizer as this engine reads it. One that was saved at ZeRO stage
    0 does not for a higher stage: DeepSpeed would begin with a new optimizer and say nothing."""
    return not engine.zero_optimization() or any(folder.glob("*zero_pp_rank_*_optim_states.pt"))


@contextmanager
def whole(engine: Any, parameters: Sequence[torch.nn.Parameter] | None = None) -> Iterator[None]:
    """Within, parameters are whole in every process, to be read: ZeRO 3 keeps parts of them.

    Args:
        engine: of DeepSpeed; every process of the run enters with the same parameters.
        parameters: which; all of them when None, which a model of many GPUs has no room for.
    """
    import deepspeed

    chosen = list(engine.module.parameters()) if parameters is None else list(parameters)
    with deepspeed.zero.GatheredParameters(
        chosen, enabled=engine.zero_optimization_partition_weights()
    ):
        yield
