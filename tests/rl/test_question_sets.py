"""Which tasks of a set a run asks."""

import json

import pytest

from agent.settings import isolated_settings
from kg.errors import UsageError
from rl.question_sets import load_sets
from rl.train_recipe import Tasks


@pytest.fixture
def ask(tmp_path):
    """Task ids of a file of 24 questions, every other without an answer, narrowed by options."""

    def asked(answerable=12, **options):
        rows = [{"id": f"{n}", "question": f"Which {n}?", "answers": [f"{n}"]} for n in range(24)]
        for number, row in enumerate(rows):
            if number % 2 or number // 2 >= answerable:
                row |= {"answers": [], "answerable": False}
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "notes.md").write_text("Notes.")
        settings = isolated_settings(home=tmp_path, corpus=(tmp_path / "notes.md",))
        [found] = load_sets(Tasks(sets=(str(path),), **options), settings, "", tmp_path)
        return [(int(task.id), task.answerable is not False) for task in found.tasks]

    return asked


@pytest.mark.parametrize(("most", "left"), [(1.0, 12), (0.5, 12), (0.25, 4), (0.1, 1), (0.0, 0)])
def test_questions_without_an_answer_are_at_most_a_share(ask, most, left):
    found = ask(unanswerable=most)
    assert sum(not answerable for _, answerable in found) == left
    # none of those with an answer is lost
    assert [n for n, answerable in found if answerable] == [*range(0, 24, 2)]
    assert found == sorted(found)
    declined = [n for n, answerable in found if not answerable]
    assert left < 4 or max(declined) - min(declined) > 12  # from all over the set


def test_a_limit_takes_from_both(ask):
    found = ask(unanswerable=0.25, limit=8)
    assert len(found) == 8
    assert sum(not answerable for _, answerable in found) == 2


def test_a_set_without_answers_is_told(ask):
    with pytest.raises(UsageError, match="no question with an answer"):
        ask(answerable=0, unanswerable=0.5)


def test_a_set_whose_tool_episodes_lack_is_refused_with_the_setting(tmp_path, graph_data):
    tasks = Tasks(sets=("wc2014",))
    data = str(graph_data)
    with pytest.raises(UsageError, match="need the tool 'kg'") as refused:
        load_sets(tasks, isolated_settings(home=tmp_path), data, tmp_path)
    assert "--set rollouts.agent.tools=[] for closed book" in refused.value.hint
    [found] = load_sets(tasks, isolated_settings(home=tmp_path, tools=()), data, tmp_path)
    assert found.tasks  # closed book
