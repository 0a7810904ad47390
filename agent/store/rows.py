"""A trajectory as a row of the store, and back.

The record is JSON without the token arrays, which are little-endian binary. The other columns are
copies to search by: cleaned of what PostgreSQL cannot hold, never read back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sqlalchemy import RowMapping

from agent.record import utc
from agent.store.connection import StoreError
from agent.trajectory import Trajectory

_KEY_CHARS = 256


def pack(trajectory: Trajectory) -> dict[str, Any]:
    """The columns of an episode, `seq` excepted."""
    record = trajectory.to_dict()
    del record["token_ids"], record["logprobs"]
    return {
        "id": trajectory.id,
        **_columns(record),
        "record": json.dumps(record),
        "token_ids": trajectory.token_ids.astype("<i4").tobytes(),
        "logprobs": trajectory.logprobs.astype("<f4").tobytes(),
    }


def unpack(row: RowMapping) -> Trajectory:
    """The inverse of `pack`.

    Raises:
        StoreError: the row was damaged.
        TrajectoryError: it was written by another version of the format.
    """
    try:
        record = json.loads(row["record"])
        record["token_ids"] = np.frombuffer(row["token_ids"], dtype="<i4")
        record["logprobs"] = np.frombuffer(row["logprobs"], dtype="<f4")
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the episode {row['id']} is damaged in the store: {error}",
            f"agent trace rm {row['id']}",
        ) from error
    return Trajectory.from_dict(record)


def search_columns(record: str) -> dict[str, Any]:
    """The columns to search by, from the JSON of a record."""
    return _columns(json.loads(record))


def with_rewards(record: str, rewards: Mapping[str, float]) -> dict[str, Any]:
    """The columns that change when a record gets more named rewards."""
    data = json.loads(record)
    data["rewards"].update(rewards)
    return {"record": json.dumps(data), "reward": _total(data["rewards"])}


def clean(text: str) -> str:
    """Without NUL and lone surrogates, which PostgreSQL does not take."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")


def key(text: str) -> str:
    """What a column to filter by holds of a text; an index entry has a limited size."""
    return clean(text)[:_KEY_CHARS]


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    task = record["task"]
    return {
        "created": utc(record["created"]),
        "task": key(task["id"]),
        "grp": key(record["group"]),
        "policy": key(record["policy"]),
        "status": record["status"],
        "stop_reason": record["stop_reason"],
        "reward": _total(record["rewards"]),
        "seed": key(str(record["seed"])),
        "question": clean(task["question"]),
        "answer": clean(record["answer"]),
    }


def _total(rewards: Mapping[str, float]) -> float | None:
    """The sum of the rewards; None when there are none or one is not finite."""
    total = sum(rewards.values())
    return float(total) if rewards and math.isfinite(total) else None
