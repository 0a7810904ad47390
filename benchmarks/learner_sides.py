"""One side of `learner.py`, in a process of its own: the same batch again and again through our
learner or through TRL's `GRPOTrainer`, timed, or a few steps with what they computed written down.

A step is what happens between a batch of rewarded rollouts and changed weights. Ours also lays out
the token trees within the time that counts. TRL gets the recorded rollouts through `rollout_func`;
that call, rewards, advantages and padding (`_prepare_inputs`) are timed apart and do not count as
its step.

    python benchmarks/learner_sides.py SIDE CASE.json OUT --model FOLDER [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402

SIDES = ("trl", "trl-deepspeed", "ours", "ours-no-entropy")
CHECKED = (1, 5)  # after how many steps the weights are written down


class Sample(NamedTuple):
    """A rollout: `mask` is 1 where a token of the completion was sampled."""

    prompt: list[int]
    completion: list[int]
    mask: list[int]
    reward: float

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion


Case = list[list[Sample]]


def read_case(path: Path) -> Case:
    return [[Sample(*row) for row in group] for group in json.loads(path.read_text())]


@dataclass
class Clock:
    """Seconds of each step by phase; what is neither forward, optimizer nor preparation is `backward`,
    the loss with its diagnostics and the backward pass."""

    warmup: int
    rows: list[dict[str, float]] = field(default_factory=list)
    forward: float = 0.0
    _began: float = 0.0

    def watch(self, module: Any) -> None:
        """Time a module's forward passes."""

        def begin(*_: Any) -> None:
            self._began = time.perf_counter()

        def end(*_: Any) -> None:
            self.forward += time.perf_counter() - self._began

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def add(self, step: float, optimizer: float, prepare: float, counted: bool) -> None:
        """One step; `counted` says whether its time holds the preparation."""
        rest = step - self.forward - optimizer - (prepare if counted else 0.0)
        row = {"step": step, "forward": self.forward, "backward": rest, "optimizer": optimizer}
        self.rows.append(row | {"prepare": prepare})
        self.forward = 0.0

    def facts(self) -> dict[str, Any]:
        kept = self.rows[self.warmup :]
        return {name: [row[name] for row in kept] for name in (self.rows or [{}])[0]}


@dataclass
class Found:
    """What the checked steps computed: log-probabilities of each rollout's sampled tokens by its number,
    loss and gradients of the first step, weights after some."""

    logprobs: dict[int, list[float]] = field(default_factory=dict)
    loss: float = 0.0
    grads: dict[str, Any] = field(default_factory=dict)
    weights: dict[int, dict[str, Any]] = field(default_factory=dict)


def peak_mib() -> float:
    """Most memory of this process that was resident; `ru_maxrss` would start at its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


# ---- ours ----------------------------------------------------------------------------------------


def ours(case: Case, args: argparse.Namespace, clock: Clock, found: Found | None) -> dict[str, Any]:
    from rl.assessment_recipe import LossChoice
    from rl.batches import lay_out, update_batch
    from rl.learner import Learner
    from rl.recipe import Optimizer
    from rl.train_recipe import Update

    update = Update(
        optimizer=Optimizer(lr=args.lr, warmup=0.0, final=1.0, betas=(0.9, 0.95)),
        zero=0,
        dtype="float32",
        entropy=args.side == "ours",
        tree_tokens=args.tree_tokens,
    )
    loss = LossChoice(aggregation="token-mean", low=0.2, high=0.2, correction=None)
    learner = Learner(args.model, update, loss, 10_000)
    assessed = as_assessed(case)
    ready, base = time.perf_counter(), peak_mib()
    clock.watch(learner.engine.module)
    after = _after_backward(learner.engine)
    if found is not None:
        _write_down(learner, found, lambda: lay_out(assessed, update.tree_tokens))
        found.weights[0] = plain(learner.engine.module, "data")
    stats = None
    for number in range(1, args.steps + 1):
        began = time.perf_counter()
        batch = update_batch(lay_out(assessed, update.tree_tokens))
        prepared = time.perf_counter()
        stats = learner.step(batch)
        done = time.perf_counter()
        clock.add(done - began, done - after[0], prepared - began, counted=True)
        if number == 1:
            first = done - ready
        if found is not None and number in CHECKED:
            found.weights[number] = plain(learner.engine.module, "data")
    assert stats is not None
    figures = stats.figures
    return {
        "base_mib": base,
        "first_step": first,
        "processed": int(figures["computed"]),
        "passes": int(figures["passes"]),
        "shared": figures["shared"],
    }


def as_assessed(case: Case) -> Any:
    """The case as `rl.assess` hands it on: trajectories and advantages, z-scored in the group."""
    from rl.credit import Batch, estimate

    groups = tuple(
        tuple(as_trajectory(sample, f"{g}-{n}") for n, sample in enumerate(group))
        for g, group in enumerate(case)
    )
    flat = [t for group in groups for t in group]
    given = [sample.reward for group in case for sample in group]
    rewards = [[None] * (len(t.turns) - 1) + [r] for t, r in zip(flat, given, strict=True)]
    batch = Batch.ragged(
        [g for g, group in enumerate(case) for _ in group],
        {"reward": rewards},
        spans=[[(turn.reply.start, turn.reply.stop) for turn in t.turns] for t in flat],
        sampled=[t.sampled for t in flat],
    )
    # TRL's epsilon
    return SimpleNamespace(groups=groups, credit=estimate("grpo", batch, eps=1e-4))


def as_trajectory(sample: Sample, id: str) -> Any:
    """Each run of sampled tokens is a turn that saw all before it."""
    from agent.policies.base import Sampling
    from agent.task import Task
    from agent.trajectory import Action, ActionKind, Span, Status, StopReason, Trajectory, Turn

    mask = np.concatenate(
        [np.zeros(len(sample.prompt), bool), np.array(sample.mask, bool), [False]]
    )
    edges = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
    runs = [Span(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    ends = [run.start for run in runs[1:]] + [len(sample.ids)]
    action = Action(ActionKind.MALFORMED, text="only tokens")
    turns = tuple(
        Turn((Span(0, run.start),), run, Span(run.stop, end), "", action, None)
        for run, end in zip(runs, ends, strict=True)
    )
    return Trajectory(
        Task(id, "?"), "recorded@1", 0, Sampling(temperature=1.0), Status.ANSWERED,
        StopReason.ANSWER, turns, np.asarray(sample.ids, dtype=np.int32),
        np.full(len(sample.ids), np.nan, dtype=np.float32), id=id,
    )  # fmt: skip


def _after_backward(engine: Any) -> list[float]:
    """When the last backward pass ended."""
    inner, ended = engine.backward, [0.0]

    def timed(*given: Any, **named: Any) -> Any:
        out = inner(*given, **named)
        ended[0] = time.perf_counter()
        return out

    engine.backward = timed
    return ended


def _write_down(learner: Any, found: Found, lay_out: Callable[[], Sequence[Any]]) -> None:
    """Log-probabilities, loss and gradients of the first step."""
    from rl import step

    passes: list[Any] = []
    hook = learner.engine.module.register_forward_hook(lambda *given: passes.append(given[2]))
    inner = step._finish

    def finish(engine: Any, live: Any, mine: Any, tally: Any) -> Any:
        hook.remove()
        setattr(step, "_finish", inner)  # noqa: B010
        assert len(lay_out()) == len(live) == len(passes)
        for tree, out in zip(live, passes, strict=True):
            values = (out[0] if out.dim() > 1 else out).detach()[tree.place].tolist()
            for number, reply in tree.where:
                found.logprobs.setdefault(int(number), []).extend(values[: len(reply)])
                values = values[len(reply) :]
        found.loss = tally.loss
        found.grads = plain(learner.engine.module, "grad")
        return inner(engine, live, mine, tally)

    setattr(step, "_finish", finish)  # noqa: B010


def plain(module: Any, what: str) -> dict[str, Any]:
    """Copies of weights or gradients by transformers' own names."""
    while hasattr(module, "module"):
        module = module.module
    skip = "model." if type(module).__name__ == "TargetLogprobs" else ""
    return {
        name.removeprefix(skip): getattr(p, what).detach().clone()
        for name, p in module.named_parameters()
    }


# ---- TRL -----------------------------------------------------------------------------------------


def trl(case: Case, args: argparse.Namespace, clock: Clock, found: Found | None) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    flat = [sample for group in case for sample in group]
    numbers: dict[tuple[int, ...], list[int]] = {}
    for n, sample in enumerate(flat):  # rollouts may be the same to the last token
        numbers.setdefault(tuple(sample.ids), []).append(n)
    passes = len(flat) // args.rows
    timed = SimpleNamespace(step=0.0, prepare=0.0, ended=0.0, first=0.0)

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _prepare_inputs(self, generation_batch: Any) -> Any:
            began = time.perf_counter()
            out = super()._prepare_inputs(generation_batch)
            timed.prepare += (spent := time.perf_counter() - began)
            timed.step -= spent
            return out

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            began = time.perf_counter()
            out = super().training_step(model, inputs, num_items_in_batch)
            timed.ended = time.perf_counter()
            timed.step += timed.ended - began
            if found is not None and self._step == passes:
                found.grads = plain(self.model, "grad")
            return out

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            if found is not None and self._step < passes:
                found.loss += float(loss.detach())
            return loss

        def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
            out = super()._get_per_token_logps_and_entropies(*given, **named)
            if found is not None and self._step < passes:
                self._note(given[1], given[2], out[0])
            return out

        def _note(self, ids: Any, seen: Any, logprobs: Any) -> None:
            assert found is not None
            for row, mask, values in zip(ids, seen.bool(), logprobs, strict=True):
                for number in numbers[tuple(row[mask].tolist())]:
                    wanted = torch.tensor(flat[number].mask, dtype=torch.bool)
                    found.logprobs[number] = values.detach()[: len(wanted)][wanted].tolist()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.perf_counter()
            optimizer = now - timed.ended
            clock.add(timed.step + optimizer, optimizer, timed.prepare, counted=False)
            timed.step = timed.prepare = 0.0
            timed.first = timed.first or now - ready
            if found is not None and state.global_step in CHECKED:
                found.weights[state.global_step] = plain(trainer.model, "data")

    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    trainer = Timed(
        model=model,
        reward_funcs=lambda prompts, completions, given, **_: given,
        args=_config(case, args, passes),
        train_dataset=_prompts(case, args.steps),
        processing_class=AutoTokenizer.from_pretrained(args.model, local_files_only=True),
        rollout_func=_recorded(case),
        callbacks=[Watch()],
    )
    ready, base = time.perf_counter(), peak_mib()
    clock.watch(model)
    if found is not None:
        found.weights[0] = plain(model, "data")
    trainer.train()
    width = max(len(s.prompt) for s in flat) + max(len(s.completion) for s in flat)
    return {
        "base_mib": base,
        "first_step": timed.first,
        "processed": sum(len(s.ids) for s in flat),
        "padded": width * len(flat),
        "passes": passes,
    }


def _config(case: Case, args: argparse.Namespace, passes: int) -> Any:
    from trl import GRPOConfig

    deepspeed = None
    if args.side == "trl-deepspeed":
        import torch

        from rl import ranks
        from rl.engine import _config as engine_config
        from rl.recipe import Optimizer

        ranks.join()
        optimizer = Optimizer(lr=args.lr, betas=(0.9, 0.95))
        deepspeed = engine_config(optimizer, torch.float32, 0)
        deepspeed["gradient_accumulation_steps"] = passes
        deepspeed["train_micro_batch_size_per_gpu"] = args.rows
    return GRPOConfig(
        output_dir=str(args.out.parent / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_vllm=False,
        per_device_train_batch_size=args.rows,
        gradient_accumulation_steps=passes,
        num_generations=len(case[0]),
        max_completion_length=max(len(s.completion) for group in case for s in group),
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        scale_rewards="group",
        temperature=1.0,
        mask_truncated_completions=False,
        optim="adamw_torch",
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=args.steps,
        report_to="none",
        log_completions=False,
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        shuffle_dataset=False,
        seed=0,
        deepspeed=deepspeed,
    )


def _prompts(case: Case, steps: int) -> Any:
    """A row a group and step: its text names the group."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [str(g) for g in range(len(case))] * steps})


def _recorded(case: Case) -> Callable[..., dict[str, Any]]:
    def rollout(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        seen: dict[str, int] = {}
        out: dict[str, list[Any]] = {
            name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "given")
        }
        for prompt in prompts:
            seen[prompt] = seen.get(prompt, -1) + 1
            sample = case[int(prompt)][seen[prompt]]
            out["prompt_ids"].append(sample.prompt)
            out["completion_ids"].append(sample.completion)
            out["logprobs"].append([0.0] * len(sample.completion))
            out["env_mask"].append(sample.mask)
            out["given"].append(sample.reward)
        return out

    return rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("case", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=13, help="warm-up included")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", type=int, default=8, help="rollouts of a pass of TRL")
    parser.add_argument("--tree-tokens", type=int, default=8192, help="of a pass of ours")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--check", action="store_true", help="write down what was computed")
    args = parser.parse_args()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    began = time.perf_counter()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    case = read_case(args.case)
    clock, found = Clock(args.warmup), Found() if args.check else None
    if args.check:
        args.steps = max(CHECKED)
    facts = (trl if args.side.startswith("trl") else ours)(case, args, clock, found)
    facts |= {"side": args.side, "threads": torch.get_num_threads(), "peak_mib": peak_mib()}
    facts |= {"seconds": time.perf_counter() - began, "times": clock.facts()}
    args.out.write_text(json.dumps(facts))
    if found is not None:
        torch.save(vars(found), args.out.with_suffix(".pt"))


if __name__ == "__main__":
    main()
