import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    return Path(os.environ.get("AGENT_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(items):
    have_data = data_folder().is_dir()
    for item in items:
        if "data" in item.keywords and not have_data:
            item.add_marker(pytest.mark.skip(reason="AGENT_DATA is absent"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from eval.data import DataFolder

    return DataFolder(data_folder(), tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="session")
def models_dir() -> Path:
    from agent.settings import load_settings

    return load_settings().models_dir


@pytest.fixture(scope="session")
def base_model(models_dir) -> Path:
    from agent.policies.catalog import resolve

    return resolve("smollm2-135m-instruct", models_dir)


@pytest.fixture(scope="session")
def template(base_model):
    from agent.policies.chat import ChatTemplate

    return ChatTemplate.load(base_model)
