"""TrajectoryStore: finished episodes in SQLite or PostgreSQL, one transaction each.

`connection` opens a database and words its errors, `schema` lays out the tables and upgrades them,
`rows` turns a trajectory into a row and back, `query` says which episodes, `trajectories` is the store.
"""

from agent.store.connection import StoreError
from agent.store.query import Filter, Summary
from agent.store.schema import SCHEMA_VERSION
from agent.store.trajectories import TrajectoryStore

__all__ = ["SCHEMA_VERSION", "Filter", "StoreError", "Summary", "TrajectoryStore"]
