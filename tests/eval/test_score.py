"""Scores of episodes built by hand: what counts, how often, and how sure it is."""

from agent.trajectory import Status, StopReason
from eval.sample import score_one
from tests.rl.rewards.episodes import abstain, answer, episode, malformed, search, task

UNANSWERABLE = task("Who directed Bliss?", answers=(), answerable=False, id="u")


def sample(*turns, of=None, scorer="squad2", **fields):
    done = episode(*turns, of=of or task(), **fields)
    return score_one("own", scorer, done.task, done)


def test_only_an_act_of_declining_is_right_where_there_is_no_answer():
    spent = {"status": Status.OVER_BUDGET, "stop_reason": StopReason.MAX_TOKENS}
    for turns, fields, right in (
        ([search(), abstain()], {}, 1),
        ([search(), abstain()], spent, 1),
        ([malformed(), malformed()], spent, 0),
        ([malformed()], {**spent, "status": Status.TRUNCATED}, 0),
        ([abstain()], {"status": Status.FAILED, "error": "boom"}, 0),
        ([answer("Ann")], {}, 0),
    ):
        one = sample(*turns, of=UNANSWERABLE, **fields)
        assert (one.right, one.em, one.f1, one.cover) == (right,) * 4
        assert one.abstained == bool(right)
