"""The recipe of a reinforcement-learning run: tasks, rollouts, updates, validation, checkpoints.

What is judged how, and by which loss, is `rl.assessment_recipe`'s part of it. Every file in `rl/recipes`
that names rewards is one; it says which of its values a paper prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from eval.benchmarks import Split
from rl.assessment_recipe import Assessment
from rl.credit import find
from rl.recipe import Lora, Offload, Optimizer, Precision, Strict, Worlds, load, resolved, validated
from rl.rewards import Need
from rl.tripwires import Tripwires

#: Keys that may change when a run goes on: what pauses it, and what suits the machine.
FREE = (
    "tripwires",
    "rollouts.deterministic",
    "rollouts.gpu_memory",
    "rollouts.tensor_parallel",
)


def _without_login(address: str) -> str:
    """A URL as recipes may hold it: they are printed, kept in the run's folder and exported."""
    if _LOGIN.match(address):
        raise ValueError(
            "a URL in a recipe holds no user or password: it is printed and exported; "
            "a server's key is AGENT_API_KEY; fetch questions behind a login beforehand"
        )
    return address


_LOGIN = re.compile(r"\s*[^/?#]*://[^/?#]*@")
#: A policy's name, folder or URL; a URL without user and password.
Address = Annotated[str, AfterValidator(_without_login)]


class Tasks(Strict):
    """What the policy is asked.

    Attributes:
        worlds: fictional worlds, made in the run's folder; their training part is used.
        sets: question sets, files of questions or folders of worlds, besides.
        split: part of each set.
        kinds: of questions; all when empty.
        unanswerable: most share of a set's questions without an answer; more of them are left out. Where
            they are many and the policy cannot tell them apart, declining everything pays best.
        limit: tasks a set, spread evenly over it; 0 for all.
        probe: closed-book samples of each task before the first step; a task is known when one of them
            is right. 0 takes the labels that `agent probe` stored with the tasks, if any.
        balanced: leave out tasks so that as many are known as are not, where both occur.
    """

    worlds: Worlds | None = None
    sets: tuple[Address, ...] = ()
    split: Split = "train"
    kinds: tuple[str, ...] = ()
    unanswerable: float = Field(1.0, ge=0, le=1)
    limit: int = Field(0, ge=0)
    probe: int = Field(0, ge=0)
    balanced: bool = False

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.sets and (self.worlds is None or not self.worlds.count):
            raise ValueError("name worlds or sets to ask about")
        return self


class Server(Strict):
    """A vLLM server that samples; see `agent.policies.vllm_server` for how it is started.

    Attributes:
        url: without `/v1`; its key is `AGENT_API_KEY`.
        transfer: how weights get there: `files` that it reads itself, on this machine or a shared disk,
            or `nccl` from GPU to GPU.
    """

    url: Address = Field(pattern=r"^https?://[^/]")
    transfer: Literal["files", "nccl"] = "files"


class Rollouts(Strict):
    """How a step's episodes are played.

    Attributes:
        tasks: of a step; each is a group.
        size: rollouts of a task.
        concurrency: episodes at once.
        engine: what samples: vLLM or transformers in this process, or a vLLM `server`, which does not
            wait for all episodes: its runs do not repeat to the last bit.
        server: of the engine `server`.
        dtype: of the engine; `auto` is float32 on a CPU and bfloat16 on a GPU, `native` as in `update`.
        gpu_memory: share of a GPU's memory for the weights and the cache of vLLM in this process; the
            learner is on the same GPU.
        context: tokens of prompt and reply together that vLLM in this process reads; 0 for the model's
            own, on a CPU at most 4,096.
        tensor_parallel: GPUs that vLLM in this process shares each matrix over, on GPUs.
        deterministic: vLLM takes a step only when every running episode waits for it, so that the same
            run gives the same tokens to the last bit. While one episode is in a tool nobody gets a
            token: that costs little where tools answer at once, and much where they do not. null is on
            on a CPU and off on a GPU. The engine `transformers` cannot wait: it batches whoever is
            there, and the key changes nothing.
        ahead: play the next step's episodes while this one's update runs: they are one update stale.
        misled: share of the episodes, drawn by their seeds, whose first search shows the best passages
            that hold neither the task's gold evidence nor its answer. Never of a task without gold
            evidence.
        agent: settings of the agent, as in agent.toml: tools, search, budgets. Its sampling may set
            `max_tokens` alone: rollouts are drawn at temperature 1 from the whole distribution. Without
            `budgets.seconds` no rollout ends by the clock, whatever machine plays it; validation keeps
            the agent's own limit.
    """

    tasks: int = Field(16, ge=1)
    size: int = Field(8, ge=1)
    concurrency: int = Field(64, ge=1)
    engine: Literal["vllm", "transformers", "server"] = "vllm"
    server: Server | None = None
    dtype: Literal["auto", "native", "bfloat16", "float32"] = "auto"
    gpu_memory: float = Field(0.35, gt=0, lt=1)
    context: int = Field(0, ge=0)
    tensor_parallel: int = Field(1, ge=1)
    deterministic: bool | None = None
    ahead: bool = False
    misled: float = Field(0.0, ge=0, le=1)
    agent: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shapes_episodes(self) -> Self:
        odd = self.agent.keys() & {"api_key", "home", "model", "policy", "store"}
        if odd:
            raise ValueError(f"'{min(odd)}' is no setting of a recipe: it is this machine's")
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        if (self.engine == "server") is not (self.server is not None):
            raise ValueError("engine: server and server: {url: ...} go together")
        return self

    @model_validator(mode="after")
    def _draws_from_the_policy(self) -> Self:
        given = self.agent.get("sampling")
        given = given if isinstance(given, dict) else {}
        for key, plain in {"temperature": 1, "top_p": 1, "top_k": 0}.items():
            if given.get(key, plain) != plain:
                raise ValueError(
                    f"agent.sampling.{key} is {given[key]}: training rollouts are drawn at temperature "
                    "1 from the whole distribution, or the log-probabilities that are recorded are not "
                    "those of the draw and the importance ratios are biased; remove it "
                    "(validation.temperature is for validation)"
                )
        return self


class Update(Strict):
    """How a step's batch changes the weights.

    Attributes:
        optimizer: AdamW, warm-up and decay over all optimizer steps of the run.
        lora: adapters; null trains all weights.
        epochs: passes over a batch.
        minibatches: optimizer steps a pass.
        tree_tokens: most tokens of one forward pass; a larger group is computed in parts.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        entropy: report the exact entropy of what is learnt from where no bonus needs it; costs a little.
            The estimate over all rollouts is always there.
        dtype, zero: of the DeepSpeed engine; the type `native` is bfloat16 where this machine computes
            in it and float32 elsewhere.
        offload: to the host's memory: the `optimizer`'s states (ZeRO 1 and above), or `all`, the weights
            too (ZeRO 3); slow.
        bad_steps: updates in a row whose loss is not a number before the run stops.
    """

    optimizer: Optimizer
    lora: Lora | None = None
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)
    tree_tokens: int = Field(8192, ge=64)
    checkpointing: bool = False
    entropy: bool = True
    dtype: Precision = "float32"
    zero: Literal[0, 1, 2, 3] = 0
    offload: Offload = "none"
    bad_steps: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _repeatable(self) -> Self:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout: ratios need the same probabilities twice; use 0")
        return self

    @model_validator(mode="after")
    def _has_what_it_offloads(self) -> Self:
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero < least:
            raise ValueError(f"offload: {self.offload} needs zero: {least} or above")
        return self


class CriticChoice(Strict):
    """The model that predicts returns, for estimators that read values: the base with a head of its own,
    in the type, ZeRO stage and trees of `update`.

    Attributes:
        optimizer: AdamW, warm-up and decay over all its optimizer steps.
        lora: adapters; null trains all weights. The head is trained either way.
        epochs, minibatches: as in `update`.
        value_clip: a value that is further than this from what it was when the batch was judged, on the
            side of its target, gets no gradient; null for no limit.
    """

    optimizer: Optimizer
    lora: Lora | None = None
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)
    value_clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _repeatable(self) -> Self:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout: values are needed twice alike; use 0")
        return self


class HeldOut(Tasks):
    """The same for tasks that are measured on."""

    split: Split = "test"


class Validation(Strict):
    """What the policy is measured on and never trained on.

    Attributes:
        every: steps; 0 for never. The first and the last step are measured whenever it is not 0.
        tasks: as for training, from the test part; none may be asked in training.
        temperature: 0 measures the greedy answers, 1 the policy as it samples.
        misled: ask the tasks with gold evidence a second time, with a first search that goes wrong as
            that of `rollouts.misled`, and measure how many end right all the same. What is best is
            decided by the clean episodes alone.
    """

    every: int = Field(0, ge=0)
    tasks: HeldOut | None = None
    temperature: float = Field(0.0, ge=0, le=1)
    misled: bool = False

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.every and self.tasks is None:
            raise ValueError("name the tasks to validate on")
        if self.misled and not self.every:
            raise ValueError("misled: nothing is validated while every is 0")
        return self


class Checkpoints(Strict):
    """What is kept: every so many steps, the last few and the one that validated best."""

    every: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)


class Asked(Strict):
    """A policy that is asked about trajectories; a name alone will do in a recipe.

    Attributes:
        policy: model name or folder, `vllm:NAME`, or the URL of an OpenAI-compatible server, without
            user and password.
        model: the model's name on that server; its key is `AGENT_API_KEY`.
    """

    policy: Address
    model: str = ""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"policy": value} if isinstance(value, str) else value


class Models(Strict):
    """Models that rewards ask; see `rl.reward_models`. None is loaded that no reward reads.

    Attributes:
        reranker: folder of a cross-encoder with one output.
        entailment: folder of a classifier with an `entailment` label.
        judge: policy that tells how far a criterion is met.
        facts: policy that lists the atomic statements of a text.
    """

    reranker: str | None = None
    entailment: str | None = None
    judge: Asked | None = None
    facts: Asked | None = None


class TrainRecipe(Assessment):
    """The whole of a reinforcement-learning run.

    Attributes:
        models: what rewards ask besides the trajectories.
        critic: for estimators that read values, and for no others.
        base: model to start from, as `agent models` knows it, or a folder.
        steps: of collecting and updating.
        seed: of everything drawn.
        max_seconds: finish the step, validate and end after this much time; 0 for no limit.
        tripwires: what pauses the run; may change when a run goes on.
    """

    base: str = "micro"
    steps: int = Field(30, ge=1)
    seed: int = Field(0, ge=0)
    max_seconds: float = Field(0, ge=0)
    tasks: Tasks
    models: Models = Models()
    rollouts: Rollouts = Rollouts()
    update: Update
    critic: CriticChoice | None = None
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    tripwires: Tripwires = Tripwires()

    @model_validator(mode="after")
    def _corrected(self) -> Self:
        if self.rollouts.ahead and self.loss.correction is None:
            raise ValueError("rollouts.ahead trains on stale episodes: loss.correction must be set")
        return self

    @model_validator(mode="after")
    def _criticised(self) -> Self:
        name = self.credit.estimator
        if find(name).values and self.critic is None:
            raise ValueError(
                f"{name} reads values: add critic: {{optimizer: {{lr: ...}}}}, or compare the rollouts "
                "of a question: credit: {estimator: rloo}, with rollouts.size above 1"
            )
        if self.critic is not None and not find(name).values:
            raise ValueError(f"critic: {name} reads no values; give null")
        return self

    @property
    def provides(self) -> frozenset[Need]:
        """What the run computes or loads for its rewards."""
        by_field = {
            Need.PROBES: True,
            Need.STEP_PROBES: True,
            Need.PROGRESS: True,
            Need.ANCHOR: self.loss.anchor is not None,
            Need.KNOWN: self.tasks.probe > 0,
            Need.VOTES: self.rollouts.tasks > 1,
            Need.CONFIDENCE: self.rollouts.size > 1,
            Need.RERANKER: self.models.reranker is not None,
            Need.ENTAILMENT: self.models.entailment is not None,
            Need.JUDGE: self.models.judge is not None,
            Need.FACTS: self.models.facts is not None,
        }
        return frozenset(need for need, there in by_field.items() if there)


def load_train(name: str, overrides: Iterable[str] = ()) -> TrainRecipe:
    """Read the recipe of a run by file path or by the name of one that ships.

    Raises:
        UsageError: no such recipe, not YAML, or an invalid or unknown key, reward or estimator.
    """
    return load(TrainRecipe, name, overrides)


def load_assessment(name: str, overrides: Iterable[str] = ()) -> Assessment:
    """The part of a recipe that judges; a file that holds nothing else will do.

    Raises:
        UsageError: as `load_train`.
    """
    data = resolved(Assessment, name, overrides)
    whole = data.keys() & (TrainRecipe.model_fields.keys() - Assessment.model_fields.keys())
    return validated(TrainRecipe if whole else Assessment, name, data)
