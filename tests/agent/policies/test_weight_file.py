import stat

import pytest
import torch
from safetensors.torch import load_file

from agent.policies.weight_file import save_tensors


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o775, 0o664), (0o700, 0o600)])
def test_weights_are_as_readable_as_their_folder(tmp_path, folder, file):
    tmp_path.chmod(folder)
    save_tensors({"a": torch.arange(3)}, tmp_path / "model.safetensors")
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == file
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [0, 1, 2]
