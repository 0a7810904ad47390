"""`agent train`: an option that would count for nothing is refused before anything begins."""

import sys

import pytest

import cli
import rl.train_command


@pytest.fixture
def agent(tmp_path, monkeypatch, capsys):
    """Run `agent train …` in this process: exit code, stderr, and what would have been carried out."""
    begun = []
    for name in ("trained", "retrained"):

        def carried_out(*_, name=name):
            begun.append(name)
            return "done", False

        monkeypatch.setattr(rl.train_command, name, carried_out)

    def run(*args):
        argv = ["agent", "train", "rest", "--out", str(tmp_path / "run"), *args]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, capsys.readouterr().err, begun

    return run


@pytest.mark.parametrize(
    "option",
    [
        ("--reward", "thumb"),
        ("--threshold", "0.5"),
        ("--way", "imitate"),
        ("--from-policy", "."),
        ("--from-store", ""),
    ],
)
def test_an_option_of_a_store_without_one_starts_no_run(agent, option):
    code, err, begun = agent(*option)
    assert (code, begun) == (2, [])
    assert option[0] in err
    assert "--from-store" in err


@pytest.mark.parametrize(
    "option", [("--data", "DATA"), ("--ignore", "gap"), ("--peak-tflops", "312")]
)
def test_an_option_of_the_loop_does_not_go_with_a_store(agent, option):
    code, err, begun = agent("--from-store", "history.sqlite", *option)
    assert (code, begun) == (2, [])
    assert f"{option[0]} does not go with --from-store" in err


def test_a_threshold_is_of_imitation_alone(agent):
    code, err, begun = agent("--from-store", "a.sqlite", "--way", "gradient", "--threshold", "0.9")
    assert (code, begun) == (2, [])
    assert "--threshold" in err
    assert agent("--from-store", "a.sqlite", "--threshold", "0.9")[0] == 0


def test_what_counts_is_taken_and_the_environment_is_not_asked(agent, monkeypatch):
    monkeypatch.setenv("AGENT_DATA", "data")
    assert agent("--from-store", "a.sqlite", "--reward", "thumb", "--way", "gradient")[0] == 0
    assert agent("--data", "here", "--ignore", "gap")[2] == ["retrained", "trained"]
