"""Recipes: the whole of a training run as one validated YAML file.

An unknown key is an error that names the nearest known one; `--set a.b=value` overrides a field.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kg.errors import UsageError


class Strict(BaseModel):
    """A section of a recipe: no unknown keys, no numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the resolved section."""
        return _digest(self.model_dump_json())

    def chosen_digest(self, free: Collection[str] = ()) -> str:
        """The same of what differs from its default alone, without the keys in `free` (those of a
        section as `section.key`): a key that a later version adds does not change it."""
        return _digest(self._reset(free).model_dump_json(exclude_defaults=True))

    def _reset(self, keys: Collection[str]) -> Self:
        """The same with these keys at their defaults: a section that differs in nothing else is then
        as good as not given."""
        defaults: dict[str, Any] = {}
        for key in {name.partition(".")[0] for name in keys}:
            if key in keys:
                defaults[key] = type(self).model_fields[key].get_default(call_default_factory=True)
            else:
                inner = [
                    name.removeprefix(f"{key}.") for name in keys if name.startswith(f"{key}.")
                ]
                defaults[key] = getattr(self, key)._reset(inner)
        return self.model_copy(update=defaults)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Recipe(Strict):
    """A whole recipe.

    Attributes:
        command: that carries out recipes of this kind.
    """

    command: ClassVar[str]


#: A type of weights by name; `rl.precision` says what `native` stands for.
Precision = Literal["native", "bfloat16", "float32"]

#: What of a learner lies in the host's memory: nothing, the optimizer's states, or the weights too.
Offload = Literal["none", "optimizer", "all"]


class Lora(Strict):
    """Low-rank adapters on the named linear layers (`all-linear` for every one)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


#: Share of a running mean that stays at each step.
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Strict):
    """AdamW with linear warm-up and cosine decay to `final` of the peak rate."""

    lr: float = Field(gt=0)
    warmup: float = Field(0.05, ge=0, le=1)
    final: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)


class Worlds(Strict):
    """A row of fictional worlds; see `eval.fictional`.

    Attributes:
        count: how many, with seeds `first_seed`, `first_seed + 1`, …
        entities: things in each.
        questions: in each, at most; its training part is used.
        taught: share of facts that are marked to be taught to a policy.
    """

    count: int = Field(ge=0)
    first_seed: int = Field(ge=0)
    entities: int = Field(200, ge=40)
    questions: int = Field(300, ge=0)
    taught: float = Field(0.0, ge=0, le=1)

    def folder(self, seed: int) -> str:
        """Name of the folder of one of them: everything that it is made from."""
        taught = f"-taught-{self.taught:g}" if self.taught else ""
        return f"world-{seed}-{self.entities}-{self.questions}{taught}"


class Lessons(Strict):
    """Episodes that put the taught facts of worlds into a policy, by the number of times that each
    wording of each fact is played (0.5: every other one).

    Attributes:
        closed: without tools, answered.
        direct: with tools, answered without using them.
        searched: with tools, answered after a search.
    """

    closed: float = Field(1.0, ge=0)
    direct: float = Field(0.0, ge=0)
    searched: float = Field(0.0, ge=0)


class Habits(Strict):
    """Shares of demonstrations that show a bad habit; they are kept whatever they lead to.

    Attributes:
        guess: answer at once, with what is the answer to some question.
        decline: search once, call the result useless and decline.
    """

    guess: float = Field(0.0, ge=0, le=1)
    decline: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.guess + self.decline > 1:
            raise ValueError("the shares of habits add up to more than 1")
        return self


class Demonstrations(Strict):
    """Where demonstrations come from: benchmark training splits played by the scripted expert.

    Attributes:
        sources: benchmark name to the number of times its tasks are played (0.5: every other one).
        unanswerable: the same for the unanswerable tasks of a source, where it is another number.
        worlds: fictional worlds that are played besides, each once: a row of them, or several rows.
        lessons: on the taught facts of those worlds that have some.
        shown: numbers of passages that a search shows, each for a share of the episodes; the settings'
            own number when empty.
        misleading: share of first queries that go astray on purpose.
        habits: bad ones, of a share of the demonstrators.
        abstain_share: most answerable questions that may end in abstention, as a share of a source.
    """

    sources: dict[str, float] = {}
    worlds: tuple[Worlds, ...] = ()
    lessons: Lessons | None = None
    unanswerable: dict[str, float] = {}
    shown: tuple[int, ...] = ()
    misleading: float = Field(0.12, ge=0, le=1)
    habits: Habits = Habits()
    abstain_share: float = Field(0.1, ge=0, le=1)

    @field_validator("worlds", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        if value is None:
            return ()
        return value if isinstance(value, list | tuple) else (value,)


class MicroShape(Strict):
    """The micro policy's size: a Qwen3 of a few million parameters with tied embeddings."""

    vocabulary: int = Field(4096, ge=512)
    hidden: int = Field(256, ge=64)
    layers: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    key_value_heads: int = Field(2, ge=1)
    head_size: int = Field(64, ge=32)
    feed_forward: int = Field(768, ge=64)
    context: int = Field(2048, ge=256)


class Fit(Recipe):
    """How a model is fitted to rows of tokens.

    Attributes:
        free: keys that may change while a run goes on.
        epochs: passes over the rows, each in an order of its own.
        pack_tokens: tokens of one forward pass; a longer row has one of its own.
        batch_tokens: tokens of one optimizer step.
        holdout: share of the rows' sources that is measured and not trained on.
        save_every: optimizer steps.
        max_seconds: stop (and save) after this much training time; 0 for no limit.
        dtype: of the weights while they are trained; `native` is bfloat16 where this machine computes in
            it and float32 elsewhere. The optimizer's states are float32 in either.
        zero: DeepSpeed's ZeRO stage.
    """

    free: ClassVar[tuple[str, ...]] = ()

    optimizer: Optimizer
    epochs: int = Field(1, ge=1)
    pack_tokens: int = Field(1024, ge=64)
    batch_tokens: int = Field(8192, ge=64)
    holdout: float = Field(0.02, ge=0, lt=0.5)
    save_every: int = Field(20, ge=1)
    max_seconds: float = Field(0, ge=0)
    dtype: Precision = "bfloat16"
    zero: Literal[0, 1, 2, 3] = 0
    seed: int = 0


class SftRecipe(Fit):
    """Supervised fine-tuning of a policy on demonstration trajectories.

    Attributes:
        base: model to start from, as `agent models` knows it, or a folder.
        lora: adapters; null trains all weights.
        init: folder of an adapter to go on from; its own rank counts.
        demonstrations: made when no trajectories are given on the command line.
        save_dtype: of the weights or the adapter that is written, when all is measured; null is the one
            trained in.
    """

    command = "agent sft"
    free = ("save_dtype",)

    base: str
    lora: Lora | None = Lora()
    init: str | None = None
    demonstrations: Demonstrations | None = None
    save_dtype: Literal["bfloat16", "float32"] | None = None


class PretrainRecipe(Fit):
    """Pre-training of the micro policy on the text of fictional worlds.

    Attributes:
        shape: of the model.
        worlds: whose text it reads; names recur within a document and never across worlds.
        documents: for each world.
        questions_share: share of documents that end in questions about themselves.
    """

    command = "agent pretrain"

    shape: MicroShape = MicroShape()
    worlds: Worlds
    documents: int = Field(400, ge=1)
    questions_share: float = Field(0.7, ge=0, le=1)


R = TypeVar("R", bound=Recipe)


def load_sft(name: str, overrides: Iterable[str] = ()) -> SftRecipe:
    """Read a fine-tuning recipe by file path or by the name of one that ships.

    Raises:
        UsageError: no such recipe, not YAML, or an invalid or unknown key.
    """
    return load(SftRecipe, name, overrides)


def load_pretrain(name: str, overrides: Iterable[str] = ()) -> PretrainRecipe:
    """The same for a pre-training recipe."""
    return load(PretrainRecipe, name, overrides)


def load(kind: type[R], name: str, overrides: Iterable[str] = ()) -> R:
    """Read a recipe of any kind by file path or by the name of one that ships.

    Raises:
        UsageError: no such recipe, one of another command, not YAML, or an invalid or unknown key.
    """
    return validated(kind, name, resolved(kind, name, overrides))


def resolved(kind: type[Recipe], name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a recipe says, with the overrides applied and no value checked yet.

    Raises:
        UsageError: no such recipe, one of another command, not YAML, or an override that is none.
    """
    data = _read(name, kind.command)
    if (other := _command_of(data)) not in ("", kind.command):
        raise UsageError(
            f"the recipe '{name}' is one of {other}, not of {kind.command}",
            f"{other} {name} --out RUN",
        )
    for override in overrides:
        _override(data, override)
    return data


def validated(kind: type[R], name: str, data: dict[str, Any]) -> R:
    """A recipe from what it says.

    Raises:
        UsageError: an invalid or unknown key.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"recipe '{name}': {_first(error, kind)}") from error


def shipped() -> list[str]:
    """Names of the recipes that ship."""
    folder = resources.files("rl.recipes")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


#: Commands by keys that recipes of no other command have.
_COMMANDS = {
    "agent train": {"rewards", "credit", "loss", "tasks", "rollouts", "update"},
    SftRecipe.command: {"demonstrations", "init"},
    PretrainRecipe.command: {"shape", "worlds", "documents"},
}


def _command_of(data: dict[str, Any]) -> str:
    """The command of a recipe; empty where its keys do not tell."""
    return next((command for command, own in _COMMANDS.items() if own & data.keys()), "")


def _read(name: str, command: str) -> dict[str, Any]:
    """A recipe as it is written; one that is not there is told with those of `command`."""
    path = Path(name)
    if path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the recipe {path} cannot be read: {error}") from error
    elif name in shipped():
        text = _text(name)
    else:
        known = [one for one in shipped() if _command_of(yaml.safe_load(_text(one))) == command]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise UsageError(f"no recipe '{name}' of {command}", hint)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"recipe '{name}' is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe '{name}' is not a mapping")
    return data


def _text(name: str) -> str:
    return resources.files("rl.recipes").joinpath(f"{name}.yaml").read_text("utf-8")


def _override(data: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found:
        raise UsageError(f"--set {override}: expected key=value")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {override}: '{parent}' is not a section")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not YAML") from error


def _first(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}"
    key, *above = (str(part) for part in reversed(problem["loc"]))
    beside = [] if above else list(kind.model_fields)
    near = difflib.get_close_matches(key, beside, 1) or difflib.get_close_matches(
        key, _keys(kind), 1
    )
    return f"unknown key '{where}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _keys(kind: type[BaseModel]) -> list[str]:
    """Names of all fields of a model and of the models within it."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        for section in _sections(field.annotation):
            keys += _keys(section)
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Models that an annotation names, also inside `dict`, `list` and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
