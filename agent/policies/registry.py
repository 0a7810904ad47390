"""From a policy's name to the engine that runs it.

`NAME` or a folder: transformers, embedded. `vllm:NAME`: vLLM in this process. `http://…`: any
OpenAI-compatible server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from agent.policies.base import Policy
from agent.settings import Settings
from kg.errors import UsageError


def policy_of(settings: Settings, notify: Callable[[str], None] = lambda line: None) -> Policy:
    """The policy that the settings name; see `open_policy` for what it raises.

    Args:
        settings: name, models folder, number format, and the server's model and key.
        notify: gets one line a stage of a pull.
    """
    return open_policy(
        settings.policy,
        settings.models_dir,
        dtype=settings.dtype,
        model=settings.model,
        api_key=settings.api_key,
        notify=notify,
    )


def open_policy(
    name: str,
    models: Path,
    *,
    dtype: str = "auto",
    model: str = "",
    api_key: SecretStr | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Policy:
    """Load or connect to a policy.

    Args:
        name: as above.
        models: folder of pulled models; a catalog name that is absent is pulled into it.
        dtype: `auto`, `float32` or `bfloat16`, for local engines.
        model: the model's name on a server.
        api_key: for a server.
        notify: gets one line a stage of a pull.

    Raises:
        UsageError: a URL without a model name, or an unknown name.
        PolicyUnavailableError: the model cannot be had or does not load.
    """
    if "://" in name:
        return _remote(name, model, api_key)
    engine, _, rest = name.partition(":")
    if engine not in ("vllm", "transformers") or not rest:
        engine, rest = "transformers", name
    from agent.policies.catalog import resolve

    folder = resolve(rest, models, notify)
    if engine == "vllm":
        from agent.policies.vllm import VllmPolicy

        return VllmPolicy(folder, name=rest, dtype=dtype)
    from agent.policies.transformers import TransformersPolicy

    return TransformersPolicy(folder, name=rest, dtype=dtype)


def _remote(url: str, model: str, api_key: SecretStr | None) -> Policy:
    # the URL stays out of the messages: it may hold a password or a key
    if url.partition("://")[0].lower() not in ("http", "https"):
        raise UsageError("a policy's URL begins with http:// or https://", "http://HOST:PORT/v1")
    if not model:
        raise UsageError(
            "a server needs a model name", "add --model NAME (see GET /v1/models there)"
        )
    from agent.policies.openai import OpenAIPolicy

    return OpenAIPolicy(base_url=url, model=model, api_key=api_key)
