"""The engine that samples in a training run: how it is opened, and how it gets the learner's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import SecretStr

from agent.policies.base import Policy
from rl import ranks
from rl.model_files import write_model
from rl.sync import Canary, Delivery, collected, deliver, learner_logprobs
from rl.train_recipe import Rollouts


def open_sampler(
    rollouts: Rollouts, name: str, folder: Path, api_key: SecretStr | None = None
) -> Policy:
    """The engine of a run, with the weights of a model folder.

    Args:
        rollouts: which engine, in which type, for how many episodes at once.
        name: how trajectories call it.
        folder: of the model.
        api_key: of a server.

    Raises:
        MissingExtraError: vLLM is not installed.
        PolicyUnavailableError: the engine does not start, or there is no such server.
    """
    if rollouts.server is not None:
        from agent.policies.vllm_server import VllmServerPolicy

        return VllmServerPolicy(
            rollouts.server.url,
            folder,
            name=name,
            transfer=rollouts.server.transfer,
            api_key=api_key,
            concurrency=rollouts.concurrency,
        )
    if rollouts.engine == "vllm":
        from agent.policies.vllm import VllmPolicy

        return VllmPolicy(
            folder,
            name=name,
            dtype=rollouts.dtype,
            max_model_len=rollouts.context,
            max_num_seqs=rollouts.concurrency,
            isolated=ranks.launched(),
            **of_gpus(rollouts, torch.cuda.is_available()),
        )
    from agent.policies.transformers import TransformersPolicy

    return TransformersPolicy(folder, name=name, dtype=rollouts.dtype)


def of_gpus(rollouts: Rollouts, there: bool) -> dict[str, Any]:
    """What vLLM is told about GPUs, where there are any: the learner needs room on them too."""
    if not there:
        return {}
    return {"gpu_memory": rollouts.gpu_memory, "tensor_parallel": rollouts.tensor_parallel}


async def hand_over(
    engine: Any, policy: Policy | None, like: Path, folder: Path, rollouts: Rollouts, canary: Canary
) -> Delivery | None:
    """Write the learner's weights as a model folder and deliver it, attested; every process calls it.

    Args:
        engine: the learner's, of DeepSpeed.
        policy: gets the weights; None in processes that do not sample, which get None back.
        like: the model folder that the run began with.
        folder: where the weights are written.
        rollouts: the policy's type.
        canary: what both sides score.

    Raises:
        SyncError: the policy does not hold the learner's weights.
        UsageError: the folder cannot be written.
    """
    proof = learner_logprobs(engine, canary)
    weights, adapter = collected(engine, str(like), keep=policy is not None)
    if policy is None:
        return None
    write_model(weights, like, folder, getattr(torch, _dtype(rollouts)), adapter)
    return await deliver(policy, folder, weights, canary, proof)


def _dtype(rollouts: Rollouts) -> str:
    if rollouts.dtype != "auto":
        return rollouts.dtype
    return "bfloat16" if torch.cuda.is_available() else "float32"
