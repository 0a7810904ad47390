"""The commands that collect and probe: what they say of options out of range."""

import pytest

from agent.settings import isolated_settings
from kg.errors import UsageError
from rl.command import collected, probed


@pytest.mark.parametrize(
    ("run", "field", "flag"),
    [
        (collected, "actors", "--ray"),
        (collected, "group", "--group"),
        (collected, "tasks", "TASKS"),
        (probed, "group", "--samples"),
        (probed, "concurrency", "--concurrency"),
        (probed, "tasks", "TASKS"),
    ],
)
def test_an_option_out_of_range_is_called_what_the_command_line_calls_it(
    tmp_path, run, field, flag
):
    options = {"tasks": ("nq_open",), field: () if field == "tasks" else -1}
    with pytest.raises(UsageError, match=rf"^{flag}: "):
        run(options, isolated_settings(home=tmp_path), tmp_path / "out", False, print)
