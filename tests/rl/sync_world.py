"""A training run of two processes under ZeRO 3 whose main process owns an engine; run by torchrun.

Prints one line of JSON from the main process.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import torch

from agent.policies.base import Request, Sampling
from agent.policies.vllm import VllmPolicy
from rl import ranks
from rl.engine import load_trainable, start_engine, whole
from rl.recipe import Optimizer
from rl.sync import Canary, SyncError, deliver, learner_logprobs, weights_of
from tests.rl.learner import written

NAME = "model.layers.4.self_attn.v_proj.weight"


def trained(micro, canary):
    """The DeepSpeed engine after one real step."""
    model = load_trainable(micro, None, torch.float32)
    engine = start_engine(model, Optimizer(lr=1e-3, warmup=0.0), 2, torch.float32, zero=3)
    from rl.attention import row_lengths

    ids = torch.tensor(canary.token_ids)
    places = torch.arange(len(ids))
    with row_lengths([len(ids)]):
        engine.backward(-engine(ids, places, places[1:]).mean())
    engine.step()
    return engine


async def sync(policy, micro, out, mine, canary, theirs):
    """What the main process does, as a record."""
    asked = Request((), canary.token_ids[:20], Sampling(max_tokens=6))
    [before] = await policy.generate([asked])
    good = written(micro, out / "good", mine)
    told = await deliver(policy, good, mine, canary, theirs)
    [after] = await policy.generate([asked])
    other = mine[NAME].clone()
    other[1, 2] += 1e-6
    bad = written(micro, out / "bad", {**mine, NAME: other})
    try:
        await deliver(policy, bad, mine, canary, theirs)
    except SyncError as error:
        refused = error.message
    await policy.aclose()
    return {
        "tensors": told.tensors,
        "gap": told.gap,
        "moved": before.logprobs != after.logprobs,
        "refused": refused,
        "environment": [os.environ["RANK"], os.environ["WORLD_SIZE"]],
    }


def main(micro, out):
    """One process of the run."""
    ranks.join()
    policy = None
    if ranks.is_main():
        policy = VllmPolicy(
            micro,
            dtype="float32",
            max_model_len=256,
            max_num_seqs=4,
            cache_gib=0.25,
            isolated=True,
        )
    from agent.policies.chat import ChatTemplate

    canary = Canary.of(ChatTemplate.load(micro))
    engine = trained(micro, canary)
    try:
        weights_of(engine)
        apart = ""
    except SyncError as error:
        apart = error.message
    theirs = learner_logprobs(engine, canary)
    with whole(engine):
        mine = {name: tensor.clone() for name, tensor in weights_of(engine).items()}
    if policy is not None:
        record = asyncio.run(sync(policy, micro, out, mine, canary, theirs))
        print(json.dumps({**record, "apart": apart}), flush=True)
    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    assert ones.item() == 2


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
