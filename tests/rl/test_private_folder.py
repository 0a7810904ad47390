"""Folders of history."""

import os
import stat

import pytest

from agent.checkpoints import checkpoints
from agent.settings import isolated_settings
from agent.store import StoreError, TrajectoryStore
from kg import private_folder
from rl.collect import _alone


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_what_is_made_is_its_owners_alone_and_what_is_there_stays(tmp_path):
    (tmp_path / "shared").mkdir()
    private_folder.make(tmp_path / "shared" / "a" / "b")
    assert mode(tmp_path / "shared") == 0o755
    assert {mode(tmp_path / "shared" / "a"), mode(tmp_path / "shared" / "a" / "b")} == {0o700}
    private_folder.make(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o755


async def test_nobody_else_reads_stores_and_conversations(tmp_path):
    TrajectoryStore.open(tmp_path / "home" / "trajectories.sqlite").close()
    async with checkpoints(tmp_path / "other" / "threads.sqlite"):
        pass
    assert {mode(tmp_path / "home"), mode(tmp_path / "other")} == {0o700}


def test_nor_unfinished_episodes_of_a_collection(tmp_path):
    settings = isolated_settings(home=tmp_path / "home")
    with TrajectoryStore.open(tmp_path / "out.sqlite") as store, _alone(store, settings):
        assert mode(tmp_path / "home") == 0o700


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        TrajectoryStore.open(tmp_path / "home" / "trajectories.sqlite")
