"""The micro policy: a model of a few million parameters that ships with the package, weights and all."""

import shutil
from pathlib import Path

from agent.policies.model_folder import (
    Manifest,
    Progress,
    build,
    locked,
    sha256_of,
    verify,
    write_failure,
)
from agent.policies.plain_model import WEIGHTS

MICRO = "micro"
MICRO_FOLDER = Path(__file__).parent / "micro"
MICRO_PARAMETERS = 5_771_264


def micro_folder(cache: Path, progress: Progress, *, force: bool = False) -> Path:
    """The micro policy, copied into the cache: a package's own folder may be read-only.

    Args:
        cache: the folder of models; made when absent.
        progress: told when another process is at it.
        force: copy it anew even if it is there.

    Raises:
        CorruptModelError: the copy that is there is damaged and `force` is off.
        PolicyUnavailableError: the disk is full.
    """
    target = cache / f"{MICRO}-{sha256_of(MICRO_FOLDER / WEIGHTS)[:12]}"

    def fill(out: Path, scratch: Path) -> None:
        for file in MICRO_FOLDER.iterdir():
            if file.suffix != ".md":
                shutil.copyfile(file, out / file.name)

    try:
        with locked(cache / MICRO, progress):
            if force or not target.exists():
                build(target, Manifest(name=MICRO, source="this package"), fill)
    except OSError as error:
        raise write_failure(target, error) from error
    verify(target, f"agent models pull {MICRO} --force", deep=True)
    return target
