import os
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: two processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the time that an example takes says nothing while other tests run beside it
hypothesis.settings.register_profile("beside others", deadline=None)
hypothesis.settings.load_profile("beside others")

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


@pytest.fixture
def graph_data(tmp_path):
    """A data folder with `wc2014`, whose 30 questions need the tool `kg`; one file of it is bad."""
    folder = tmp_path / "data" / "wc2014"
    folder.mkdir(parents=True)
    (folder / "kb.tsv").write_text("A_B\tplays\tC\n")
    row = "where does A_B play ?\tC\tA_B#plays#C\tC/\n"
    (folder / "path2.tsv").write_text("".join(row.replace("A_B", f"A_{n}") for n in range(30)))
    (folder / "conjunctive.tsv").write_text("cut off\n")
    return folder.parent
