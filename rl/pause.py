"""The pause of a run that tripped a wire: which one, the numbers, what to compare, how to go on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.store import TrajectoryStore
from kg.errors import TurnwiseError
from rl import run_folder
from rl.run_history import History, Measured, read_history
from rl.tripwires import Trip, Tripwires, check

_SHOWN = 3


class TrippedError(TurnwiseError):
    """A tripwire paused the run; the checkpoint is saved and the same command can go on."""


@dataclass(frozen=True)
class Compare:
    """Ids of episodes worth looking at side by side, a few of each step."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def looked(run: Path, wires: Tripwires, ignored: Collection[str] = ()) -> TrippedError | None:
    """What pauses a run, by the history in its folder; None when nothing does. Tripped wires are written
    among the run's events, once a step.

    Args:
        run: its folder.
        wires: with their thresholds.
        ignored: names of wires that do not pause it.
    """
    seen = read_history(run)
    trips = check(wires, seen, ignored)
    told = {(event.step, event.text) for event in seen.events}
    for text in (f"{trip.wire}: {trip.said}" for trip in trips):
        if (seen.step, text) not in told:
            run_folder.note(run, seen.step, "tripwire", text)
    return paused(run, seen, trips) if trips else None


def paused(run: Path, seen: History, trips: list[Trip]) -> TrippedError:
    """The error for the first trip; it names the others."""
    trip = trips[0]
    more = "".join(f"; also {other.wire}: {other.said}" for other in trips[1:])
    ignores = " ".join(f"--ignore {one.wire}" for one in trips)
    unset = " ".join(f"--set tripwires.{one.wire}=null" for one in trips)
    return TrippedError(
        f"tripwire '{trip.wire}' paused the run at step {seen.step}: {trip.said}{more}",
        f"look at {trip.look}\n{_compared(run, seen, trip)}"
        f"go on with the same command and {ignores}, or for good with {unset}",
    )


def _compared(run: Path, seen: History, trip: Trip) -> str:
    chosen = to_compare(run, seen, trip)
    ids = " ".join((*chosen.before, *chosen.after))
    if not ids:
        return ""
    return (
        f"compare step {trip.before} ({', '.join(chosen.before)}) "
        f"with step {trip.after} ({', '.join(chosen.after)}):\n"
        f"  agent trace html {ids} --store {run / 'trajectories.sqlite'}\n"
    )


def to_compare(run: Path, seen: History, trip: Trip) -> Compare:
    """Episodes of before and after: of questions that were right and are wrong where validations tell,
    else rollouts of the two steps."""
    by_step = {one.step: one for one in seen.validations}
    if trip.wire == "validation" and trip.before in by_step and trip.after in by_step:
        lost = turned(by_step[trip.before], by_step[trip.after], right=False)[:_SHOWN]
        return Compare(tuple(a for _, a, _ in lost), tuple(b for _, _, b in lost))
    path = run / "trajectories.sqlite"
    if not path.is_file():
        return Compare()
    with TrajectoryStore.open(path) as store:
        keys = {group: id for (group, _), (id, _) in store.keys().items()}
    return Compare(_of_step(keys, trip.before), _of_step(keys, trip.after))


def _of_step(keys: dict[str, str], step: int) -> tuple[str, ...]:
    """A rollout of each of a step's first groups."""
    return tuple(id for group, id in keys.items() if group.startswith(f"step-{step:05d}/"))[:_SHOWN]


def turned(before: Measured, after: Measured, right: bool) -> list[tuple[str, str, str]]:
    """Questions that became right (or wrong): name, the episode before and the episode after."""
    out = []
    for name, old in before.questions.items():
        new = after.questions.get(name)
        if new is not None and (new.right > old.right if right else new.right < old.right):
            out.append((name, old.episode, new.episode))
    return out
