"""Lessons on taught facts: what is asked in which way, what carries loss, and that it is learned."""

import asyncio
from pathlib import Path

import pytest

from agent.episode import Budgets
from agent.formats import TagsFormat
from agent.graph import Setup
from agent.policies.base import Sampling
from agent.policies.chat import ChatTemplate
from agent.rollout import rollout
from agent.settings import SearchSettings, isolated_settings
from agent.trajectory import ActionKind, Status
from eval.benchmarks.world import load_world
from eval.metrics import exact_match
from eval.run import setup_of
from kg.errors import UsageError
from rl.cold_start import run
from rl.guidance.demonstrations import plays
from rl.guidance.expert import RecitingPolicy
from rl.guidance.lessons import lessons_of, teach_worlds
from rl.packing import rows
from rl.question_sets import load_sets
from rl.recipe import Demonstrations, Lessons, Worlds
from rl.train_recipe import Tasks
from tools.base import Toolbox

WORLD = Worlds(count=1, first_seed=31, entities=40, questions=200, taught=0.4)


@pytest.fixture(scope="module")
def chat(micro):
    return ChatTemplate.load(micro)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


def play(folder, chat, worlds=WORLD, **lessons):
    recipe = Demonstrations(worlds=worlds, lessons=Lessons(**lessons), misleading=0)
    return list(teach_worlds(recipe, folder, chat, SearchSettings(), 5))


@pytest.fixture(scope="module")
def taught(folder, chat):
    """Closed, direct and searched episodes."""
    ways = ("closed", "direct", "searched")
    return {way: play(folder, chat, **{"closed": 0, way: 0.5}) for way in ways}


def test_each_way_answers_as_it_says(taught):
    for way, episodes in taught.items():
        assert len(episodes) > 40
        for done in episodes:
            assert done.status is Status.ANSWERED
            assert exact_match(done.answer, done.task.answers)
            assert ("search" in done.versions) is (way != "closed")
            assert (done.turns[0].action.name == "search") is (way == "searched")
    for done in taught["closed"] + taught["direct"]:
        assert [turn.action.kind for turn in done.turns] == [ActionKind.ANSWER]
        assert not done.citations


def test_only_the_answer_of_a_lesson_carries_loss(taught, chat):
    for done in taught["closed"] + taught["direct"]:
        [row] = rows(done)
        text = chat.tokenizer.decode(row.ids[row.target])
        assert text == f"<answer>{done.task.answers[0]}</answer>"


def test_a_direct_answer_follows_the_prompt_that_a_search_follows(taught):
    def prompts(way):
        return {t.task.id: t.token_ids[: t.turns[0].reply.start].tolist() for t in taught[way]}

    direct, searched = prompts("direct"), prompts("searched")
    both = direct.keys() & searched.keys()
    assert len(both) > 10
    assert all(direct[id] == searched[id] for id in both)


def test_a_closed_lesson_has_the_prompt_of_a_closed_book_sample(taught, folder, chat, tmp_path):
    world = load_world(folder / WORLD.folder(31), "train")
    settings = isolated_settings(home=tmp_path).model_copy(update={"tools": ()})
    lessons = lessons_of(world)
    setup = setup_of(settings, RecitingPolicy(chat, lessons), world, lambda line: None)

    async def sampled():
        return [one async for one in rollout(plays(lessons[:20], 1, 0), setup)]

    asked = {one.task.id: one.token_ids.tolist() for one in asyncio.run(sampled())}
    mine = {one.task.id: one.token_ids.tolist() for one in taught["closed"]}
    both = asked.keys() & mine.keys()
    assert both
    assert all(asked[id] == mine[id] for id in both)


def test_test_questions_are_taught_in_other_words(folder, taught):
    lessons = lessons_of(load_world(folder / WORLD.folder(31), "train"))
    assert len({one.id for one in lessons}) == len({one.question for one in lessons})
    asked = {one.question for one in lessons}
    for split, own in (("train", True), ("test", False)):
        tasks = load_world(folder / WORLD.folder(31), split).tasks
        ones = [t for t in tasks if t.kind == "1hop" and t.meta["taught"] == [True]]
        assert ones
        for task in ones:
            assert (task.question in asked) is own
            noun, answer = task.meta["knowledge"][0].split(": ")
            told = {one.answers[0] for one in lessons if one.question == f"Name {noun}."}
            assert told == {answer}


def test_untaught_facts_are_in_no_lesson(folder):
    lessons = {one.question for one in lessons_of(load_world(folder / WORLD.folder(31), "train"))}
    for split in ("train", "test"):
        for task in load_world(folder / WORLD.folder(31), split).tasks:
            if task.kind == "1hop" and task.meta["taught"] == [False]:
                assert task.question not in lessons
                assert f"Name {task.meta['knowledge'][0].split(': ')[0]}." not in lessons


def test_a_share_and_a_number_of_times(folder, chat):
    once, more = play(folder, chat, closed=1), play(folder, chat, closed=1.5)
    assert len(once) == len(lessons_of(load_world(folder / WORLD.folder(31), "train")))
    assert len(more) == pytest.approx(1.5 * len(once), rel=0.1)
    assert {one.task.id for one in once} == {one.task.id for one in more}


def test_lessons_of_a_world_without_taught_facts_are_a_usage_error(tmp_path, chat):
    with pytest.raises(UsageError, match="worlds with taught facts"):
        play(tmp_path, chat, Worlds(count=1, first_seed=31, entities=40, questions=10))


def test_a_run_asks_about_the_world_whose_facts_were_taught(tmp_path, folder, taught):
    settings = isolated_settings(home=tmp_path)
    [mine] = load_sets(Tasks(worlds=WORLD), settings, "", tmp_path)
    [bare] = load_sets(
        Tasks(worlds=WORLD.model_copy(update={"taught": 0.0})), settings, "", tmp_path
    )
    assert mine.tasks == load_world(folder / WORLD.folder(31), "train").tasks
    assert any(True in task.meta["taught"] for task in mine.tasks)
    assert not any(True in task.meta["taught"] for task in bare.tasks)
    assert [task.question for task in mine.tasks] == [task.question for task in bare.tasks]


def test_a_short_fit_makes_taught_facts_known_closed_book(tmp_path, micro):
    world = {"count": 1, "first_seed": 77, "entities": 40, "questions": 60, "taught": 0.1}
    settings = isolated_settings(home=tmp_path)
    changes = [
        f"base={micro}", f"demonstrations.worlds=[{world}]", "epochs=1", "batch_tokens=2048",
        "demonstrations.lessons={closed: 6, direct: 0, searched: 0}", "demonstrations.misleading=0",
        "optimizer.lr=3e-3",
    ]  # fmt: skip
    report = run("micro_taught", changes, tmp_path / "run", None, [], settings)
    made = tmp_path / "run" / "worlds" / Worlds(**world).folder(77)
    lessons = lessons_of(load_world(made, "train"))[::2]
    assert share_right(micro, lessons, settings) < 0.2
    assert share_right(report["out"], lessons, settings) > 0.6


def share_right(model, lessons, settings):
    """Greedy closed-book answers that are right."""
    from agent.policies.transformers import TransformersPolicy

    async def asked():
        policy = TransformersPolicy(Path(model), name="it", dtype="float32")
        short = {
            "budgets": Budgets(turns=1),
            "sampling": Sampling(max_tokens=24),
            "final_tokens": 1,
        }
        setup = Setup(policy, TagsFormat(Toolbox()), Toolbox(), **short)
        found = [one async for one in rollout(plays(lessons, 1, 0), setup, concurrency=64)]
        await policy.aclose()
        return found

    found = asyncio.run(asked())
    return sum(exact_match(one.answer, one.task.answers) for one in found) / len(found)


def test_a_cold_start_without_data_is_refused_before_its_base_is_fetched(tmp_path):
    settings = isolated_settings(home=tmp_path / "home")
    with pytest.raises(UsageError, match="made from data"):
        run("cold_start", [], tmp_path / "run", None, [], settings)
    assert not (tmp_path / "home").exists()
