"""The micro policy: a model of a few million parameters that ships with the package, weights and all.

It is there twice: `micro` after its cold start, and `micro-careless` after demonstrators with bad
habits, which training is to break. The second is weights alone; all other files are the first one's.
"""

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
#: Names of the policies in the package to the folder of their weights.
BUNDLED = {MICRO: MICRO_FOLDER, "micro-careless": Path(__file__).parent / "micro_careless"}


def bundled_folder(name: str, cache: Path, progress: Progress, *, force: bool = False) -> Path:
    """A policy of `BUNDLED`, copied into the cache: a package's own folder may be read-only.

    Args:
        name: which.
        cache: the folder of models; made when absent.
        progress: told when another process is at it.
        force: copy it anew even if it is there.

    Raises:
        CorruptModelError: the copy that is there is damaged and `force` is off.
        PolicyUnavailableError: the disk is full.
    """
    weights = BUNDLED[name] / WEIGHTS
    target = cache / f"{name}-{sha256_of(weights)[:12]}"

    def fill(out: Path, scratch: Path) -> None:
        for file in MICRO_FOLDER.iterdir():
            if file.suffix != ".md":
                shutil.copyfile(file, out / file.name)
        shutil.copyfile(weights, out / WEIGHTS)

    try:
        with locked(cache / name, progress):
            if force or not target.exists():
                build(target, Manifest(name=name, source="this package"), fill)
    except OSError as error:
        raise write_failure(target, error) from error
    verify(target, f"agent models pull {name} --force", deep=True)
    return target
