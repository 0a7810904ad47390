"""The micro policy's pre-training: a small Qwen3 with its own tokenizer, on fictional worlds.

A document is a few passages about things that name each other, and often questions about them with
their answers. Names recur within a document and never across worlds, so that the one way to predict
them is to copy them from the context; that is what an agent needs to read a search result.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.formats import TagsFormat, system_prompt
from agent.policies.base import Policy, Request, Sampling
from eval.fictional.passages import passages_of
from eval.fictional.world import Entity, World, told
from eval.stats import Interval, estimate
from rl import ranks
from rl.attention import NAME, register
from rl.engine import TargetLogprobs, whole
from rl.fit import FitReport, Progress, fit
from rl.packing import Row
from rl.precision import settled
from rl.recipe import MicroShape, PretrainRecipe
from rl.run_folder import claim
from tools.base import Toolbox
from tools.judge import JudgeTool

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QUESTIONS = 4
_SPAN = 3  # things in a document
_TOKENIZER_DOCUMENTS = 4000
_PROMPTS = 50  # times the agent's prompt is read for the tokenizer

Notify = Callable[[str], None]


def pretrain(
    recipe: PretrainRecipe,
    run: Path,
    progress: Progress = lambda report: None,
    notify: Notify = lambda line: None,
) -> FitReport:
    """Train tokenizer and model from nothing; the result lies in `run/model`.

    Args:
        recipe: what to do.
        run: folder of the run; one with a save in it is resumed.
        progress: called after each optimizer step.
        notify: gets one line a stage.

    Raises:
        UsageError: the folder belongs to another recipe.
        TrainingError: the loss became not a number.
    """
    recipe = settled(recipe, run)
    folder = run / "tokenizer"
    claim(run, recipe)

    def trained() -> None:
        if not (folder / "tokenizer_config.json").is_file():
            notify("training the tokenizer")
            save_tokenizer(recipe, folder)

    ranks.main_first(trained)
    tokenizer = load_tokenizer(folder)
    notify("writing documents")
    worlds = [recipe.worlds.first_seed + n for n in range(recipe.worlds.count)]
    cut = max(1, round(recipe.holdout * len(worlds)))
    held = list(_rows(recipe, tokenizer, worlds[:cut]))
    train_rows = list(_rows(recipe, tokenizer, worlds[cut:]))
    total = sum(map(len, train_rows))
    notify(f"{len(train_rows):,} documents, {total:,} tokens")
    dtype = getattr(torch, recipe.dtype)
    return fit(
        recipe,
        lambda: TargetLogprobs(new_model(recipe.shape, tokenizer, dtype).train()),
        train_rows,
        held[: max(1, len(held) // 4)],
        run,
        lambda engine: _export(engine, run, folder),
        progress,
    )


def documents(recipe: PretrainRecipe, seeds: Sequence[int]) -> Iterator[str]:
    """The documents of some worlds, in a fixed order."""
    for seed in seeds:
        world = World(seed, recipe.worlds.entities)
        chance = random.Random(f"documents {recipe.seed} {seed}")
        things = list(world.entities())
        for _ in range(recipe.documents):
            yield _document(world, chance, things, chance.random() < recipe.questions_share)


def _document(world: World, chance: random.Random, things: list[Entity], asked: bool) -> str:
    """Passages of a thing and of things that it leads to, numbered as a search shows them."""
    chosen = _linked(world, chance, chance.choice(things))
    texts = [(one.title, one.text) for thing in chosen for one in passages_of(world, thing)]
    chance.shuffle(texts)
    lines = [f"[{n}] {title}: {text}" for n, (title, text) in enumerate(texts[:5], 1)]
    if asked:
        lines += _asked(world, chance, chosen, "\n".join(lines))
    return "\n".join(lines)


async def copied(policy: Policy, recipe: PretrainRecipe, seed: int, count: int = 200) -> Interval:
    """How often a policy answers a question by copying the right name out of its context.

    Args:
        policy: the pre-trained model, token-exact.
        recipe: how documents are made.
        seed: of a world that it has not read.
        count: questions.
    """
    assert policy.template is not None
    prompts: list[tuple[int, ...]] = []
    golds: list[str] = []
    for text in documents(recipe, [seed]):
        head, found, rest = text.partition("<answer>")
        if found and len(prompts) < count:
            prompts.append(tuple(policy.template.encode(head + found)))
            golds.append(rest.split(" [")[0])
    sampling = Sampling(max_tokens=32)
    requests = [Request((), ids, sampling, ("</answer>", "\n")) for ids in prompts]
    done = await policy.generate(requests)
    said = [one.text.split(" [")[0] for one in done]
    return estimate([float(a == b) for a, b in zip(said, golds, strict=True)])


def _linked(world: World, chance: random.Random, start: Entity) -> list[Entity]:
    chosen = [start]
    for _ in range(_SPAN - 1):
        found = [
            value
            for of in told(chosen[-1].kind)
            if isinstance(value := world.value(chosen[-1], of), Entity) and value not in chosen
        ]
        if not found:
            break
        chosen.append(chance.choice(found))
    return chosen


def _asked(world: World, chance: random.Random, chosen: list[Entity], shown: str) -> list[str]:
    """Questions that the shown passages answer, each with its answer and the passage's number."""
    pairs = [(thing, of) for thing in chosen for of in told(thing.kind)]
    chance.shuffle(pairs)
    lines = []
    for thing, of in pairs:
        value, name = world.value(thing, of), world.name(thing)
        if value is None:
            continue
        number = _number(shown, name, world.name(value))
        if number:
            question = of.question.format(s=name)
            lines.append(f"{question}\n<answer>{world.name(value)} [{number}]</answer>")
        if len(lines) == _QUESTIONS:
            break
    return lines


def _number(shown: str, title: str, value: str) -> int:
    """The number of the passage of that title that holds the value; 0 when none is shown."""
    for number, line in enumerate(shown.split("\n"), 1):
        head, _, text = line.partition(": ")
        if head.endswith(f"] {title}") and value in text and "directory" not in text:
            return number
    return 0


def save_tokenizer(recipe: PretrainRecipe, folder: Path) -> None:
    """Train a byte-level BPE on world text and the agent's own prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.shape.vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seeds = [recipe.worlds.first_seed + n for n in range(recipe.worlds.count)]
    texts = islice(documents(recipe, seeds), _TOKENIZER_DOCUMENTS)
    prompts = [TagsFormat(Toolbox([JudgeTool()])).system(system_prompt())] * _PROMPTS
    tokenizer.train_from_iterator([*prompts, *texts], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_SPECIAL[2],
        pad_token=_SPECIAL[0],
        model_max_length=recipe.shape.context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> Any:
    """A saved tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def new_model(shape: MicroShape, tokenizer: Any, dtype: torch.dtype) -> Any:
    """A Qwen3 of this shape with random weights and packed attention."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    register()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        attn_implementation=NAME,
        dtype=dtype,
    )
    return Qwen3ForCausalLM(config).to(dtype)


def _rows(recipe: PretrainRecipe, tokenizer: Any, seeds: Sequence[int]) -> Iterator[Row]:
    """Documents as rows; every token but the first carries loss."""
    for text in documents(recipe, seeds):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: recipe.pack_tokens - 1]
        array = np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int64)
        target = np.ones(len(array), dtype=np.bool_)
        target[0] = False
        yield Row(array, target)


def _export(engine: Any, run: Path, tokenizer: Path) -> Path:
    out = run / "model"
    with whole(engine):
        if ranks.is_main():
            shutil.rmtree(out, ignore_errors=True)
            engine.module.model.save_pretrained(str(out))
            for file in tokenizer.iterdir():
                shutil.copyfile(file, out / file.name)
    return out
