"""A small learner and made-up batches; as a script, the losses of some steps as JSON, a list a case.

A case is a stage of ZeRO, or a stage and the positions of a chunk: `3/5`.

python -m tests.rl.learning FOLDER OUT STEPS CASE…
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from agent.policies.bundled import MICRO_FOLDER
from rl.assessment_recipe import LossChoice
from rl.batches import lay_out, update_batch
from rl.learner import Learner
from rl.recipe import Lora, Optimizer
from rl.sync import weights_of
from rl.train_recipe import Update
from tests.rl.groups import random_group

UNIFORM = -float(np.log(4096))
CALM = 1e-3  # a learning rate at which rounding does not grow over some steps


def tiny_model(folder: Path) -> Path:
    """A random Qwen3 of two layers with the micro policy's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MICRO_FOLDER)
    config.update(
        {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "head_dim": 16}
    )
    config.update({"layer_types": ["full_attention"] * 2, "max_window_layers": 2})
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(MICRO_FOLDER / name, folder / name)
    return folder


def _uniform(trajectory):
    """As if a model that knows nothing had sampled it: importance weights are about 1."""
    return replace(trajectory, logprobs=np.where(trajectory.sampled, UNIFORM, np.nan).astype("f4"))


def assessed(step, groups=3, scale=1.0, **shape):
    """Groups of random tokens with a random advantage on each sampled token."""
    chance = np.random.default_rng(step)
    made = [tuple(map(_uniform, random_group(100 * step + n, **shape))) for n in range(groups)]
    advantages = [scale * chance.normal(size=len(t.token_ids)) * t.sampled for g in made for t in g]
    return SimpleNamespace(groups=tuple(made), credit=SimpleNamespace(advantages=advantages))


def trees_of(step, most=10_000, **shape):
    """The trees of `assessed`."""
    return lay_out(assessed(step, **shape), most)


def learner(folder, zero=0, lora=False, dtype="float32", loss=None, lr=1e-2, **update):
    """A learner whose learning rate stays."""
    made = Update(
        optimizer=Optimizer(lr=lr, warmup=0.0, final=1.0),
        lora=Lora(rank=4, alpha=8) if lora else None,
        zero=zero,
        dtype=dtype,
        **update,
    )
    return Learner(folder, made, loss or LossChoice(), 1000)


def curve(made, steps, most=10_000):
    """Loss and gradient norm of some steps, end to end: AdamW alone would not see a gradient's scale."""
    found = []
    for step in range(steps):
        stats = made.step(update_batch(trees_of(step, most)))
        found += [stats.loss, stats.figures["grad_norm"]]
    return found


def digest(made):
    """Sum of squares of every tensor, to tell weights apart."""
    return {n: float(t.double().square().sum()) for n, t in weights_of(made.engine).items()}


def case(folder, how, steps):
    """The curve of one case."""
    zero, _, chunk = how.partition("/")
    made = learner(folder, zero=int(zero), lr=CALM)
    if chunk:
        made.engine.module.chunk = int(chunk)
    return curve(made, steps)


if __name__ == "__main__":
    folder, out, steps, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    told = [case(Path(folder), how, int(steps)) for how in cases]
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(told))
