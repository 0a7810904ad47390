"""Settings: one model; flags > environment (`AGENT_*`) > agent.toml > user file > defaults."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from agent.episode import Budgets, ContextRule
from kg.address import masked
from kg.errors import UsageError

PROJECT_FILE = Path("agent.toml")
_ADDRESSES = ("policy", "store")  # may be URLs, with a user and password in them


def user_file() -> Path:
    """The user's settings file (XDG)."""
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "turnwise" / "agent.toml"


def _listed(value: Any, separator: str) -> Any:
    """The parts of an environment variable that lists something, plainly or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return tuple(part.strip() for part in value.split(separator) if part.strip())


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(lambda value: _listed(value, ","))]
_Paths = Annotated[
    tuple[Path, ...], NoDecode, BeforeValidator(lambda value: _listed(value, os.pathsep))
]


class _ProjectFile(TomlConfigSettingsSource):
    """The settings file of the folder that a person happens to be in: it may have come with
    somebody else's repository, so that it never says where questions, trajectories and keys go."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, PROJECT_FILE)
        for name in _ADDRESSES:
            if "://" in str(self.toml_data.get(name, "")):
                raise UsageError(
                    f"{PROJECT_FILE} of this folder names a server as '{name}': a project's file "
                    "may not decide where questions and keys are sent",
                    f"if you trust it: --{name} URL, AGENT_{name.upper()}, or {user_file()}",
                )


class _Section(BaseModel):
    """A part of the settings; a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class SearchSettings(_Section):
    """How the search tool reads its index.

    Attributes:
        k: passages a call shows.
        passage_chars: a longer passage is cut to its best window of sentences.
        mode: `hybrid`, `lexical` or `dense`.
    """

    k: int = Field(3, ge=1, le=50)
    passage_chars: int = Field(500, ge=100)
    mode: Literal["hybrid", "lexical", "dense"] = "hybrid"


class SamplingSettings(_Section):
    """How the policy draws tokens; see `agent.policies.base.Sampling`."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(256, ge=1)


class Settings(BaseSettings):
    """Everything that can be set.

    Attributes:
        home: one folder for models, indexes, history; XDG folders when empty.
        policy: a model name or folder, `vllm:NAME`, or the URL of an OpenAI-compatible server.
        model: the model's name on that server.
        api_key: for that server; never logged.
        format: `tags` or `tool_call`; empty picks `tool_call` for a server and `tags` otherwise.
        tools: names of the tools the policy may use; AGENT_TOOLS separates them by commas.
        corpus: files, folders or built indexes to search; the bundled library when empty. AGENT_CORPUS
            separates them as PATH does.
        rule: what becomes of a rejected observation.
        store: URL or path of the trajectory store; `home`'s own when empty.
        system: replaces the built-in system prompt.
    """

    model_config = SettingsConfigDict(
        env_prefix="AGENT_", env_nested_delimiter="__", extra="forbid", toml_file=None
    )

    home: Path | None = None
    policy: str = "default"
    model: str = ""
    api_key: SecretStr | None = None
    format: Literal["", "tags", "tool_call"] = ""
    tools: _Names = ("search", "judge")
    corpus: _Paths = ()
    rule: ContextRule = ContextRule.OMIT
    budgets: Budgets = Budgets()
    sampling: SamplingSettings = SamplingSettings()
    search: SearchSettings = SearchSettings()
    tool_seconds: float = Field(30.0, gt=0)
    observation_chars: int = Field(6000, ge=200)
    store: str = ""
    system: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, project file, user file."""
        user = TomlConfigSettingsSource(settings_cls, user_file())
        return init_settings, env_settings, _ProjectFile(settings_cls), user

    @property
    def models_dir(self) -> Path:
        """Where pulled models lie."""
        return (self.home or _xdg("XDG_CACHE_HOME", ".cache")) / "models"

    @property
    def indexes_dir(self) -> Path:
        """Where indexes built on demand lie."""
        return (self.home or _xdg("XDG_CACHE_HOME", ".cache")) / "indexes"

    @property
    def benchmarks_dir(self) -> Path:
        """Where fetched and derived benchmark files lie."""
        return (self.home or _xdg("XDG_CACHE_HOME", ".cache")) / "benchmarks"

    @property
    def data_dir(self) -> Path:
        """Where history lies: trajectories and conversations."""
        return self.home or _xdg("XDG_DATA_HOME", ".local/share")

    @property
    def threads_path(self) -> Path:
        """The file of conversations."""
        return self.data_dir / "threads.sqlite"

    @property
    def store_url(self) -> str:
        """The trajectory store's URL or path."""
        return self.store or str(self.data_dir / "trajectories.sqlite")

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of everything but secrets and this machine's paths."""
        text = self.model_dump_json(exclude={"home", "api_key", "store", "corpus"})
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "turnwise"


class _Isolated(Settings):
    """Settings that no variable and no file has a say in."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given."""
        return (init_settings,)


def isolated_settings(**values: Any) -> Settings:
    """The defaults with the given values; this machine's variables and files have no say.

    Raises:
        UsageError: as `load_settings`.
    """
    return _made(_Isolated, values)


def load_settings(**flags: Any) -> Settings:
    """Settings with the given flags; flags that are None are not set.

    Raises:
        UsageError: a value out of range or of the wrong type, named with where it is set.
    """
    return _made(Settings, flags)


def _made(kind: type[Settings], flags: Mapping[str, Any]) -> Settings:
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        raise UsageError(
            f"setting '{where}': {'there is no such setting' if unknown else problem['msg']}",
            f"see AGENT_{where.upper().replace('.', '__')}, {PROJECT_FILE} and {user_file()}",
        ) from error
    except ValueError as error:  # a file that is not TOML, a variable that is not JSON
        raise UsageError(
            f"settings: {error}", f"check the variables AGENT_…, {PROJECT_FILE} and {user_file()}"
        ) from error


def origins() -> list[tuple[str, Any, str]]:
    """Every setting with its value and where it comes from; secrets are masked, those in
    URLs too.

    Raises:
        UsageError: as `load_settings`.
    """
    settings = load_settings()
    names = Settings.model_fields
    user = TomlConfigSettingsSource(Settings, user_file()).toml_data
    project = _ProjectFile(Settings).toml_data
    found = []
    for name in names:
        variable = f"AGENT_{name.upper()}"
        variables = [key for key in os.environ if key.upper().startswith(variable)]
        exact = [key for key in variables if key.upper() == variable or "__" in key]
        places = [*sorted(exact)]
        places += [str(PROJECT_FILE)] * (name in project) + [str(user_file())] * (name in user)
        value = settings.model_dump(mode="json", include={name})[name]
        if name in _ADDRESSES:
            value = masked(value)
        found.append((name, value, ", ".join(places) or "default"))
    return found
