"""The micro policy that ships: it loads, it searches and answers on a world that it has not read."""

import shutil

import pytest

from agent.policies import bundled, catalog
from agent.policies.bundled import BUNDLED, MICRO_PARAMETERS
from agent.policies.model_folder import MANIFEST, read_manifest, weights_version
from agent.policies.transformers import TransformersPolicy
from agent.settings import load_settings
from eval.fictional.make import make_world
from eval.run import EvalRequest, run
from eval.score import score_run


@pytest.mark.parametrize("name", BUNDLED)
def test_it_is_small_and_copied_whole_into_the_cache(name, tmp_path):
    assert all(file.stat().st_size < 20e6 for file in BUNDLED[name].iterdir())
    folder = catalog.resolve(name, tmp_path)
    assert folder.parent == tmp_path
    assert catalog.resolve(name, tmp_path) == folder
    (folder / "config.json").unlink()
    assert catalog.pull(name, tmp_path, force=True) == folder
    policy = TransformersPolicy(folder)
    assert sum(p.numel() for p in policy.model.parameters()) == MICRO_PARAMETERS
    policy._worker.shutdown()


def test_it_answers_on_a_world_that_it_has_not_read(tmp_path):
    world = tmp_path / "world"
    make_world(world, 77, 120, 120)
    settings = load_settings(policy="micro", search={"mode": "lexical"})
    run(EvalRequest(benchmarks=(str(world),), cache=False), settings, tmp_path / "run")
    found = score_run(tmp_path / "run")
    [one] = found.sets
    assert one.episodes == one.questions >= 25
    assert one.answers["right"].mean > 0.3  # guessing gives next to nothing
    assert one.usage["searches / question"].mean > 0.8
    assert one.usage["invalid / question"].mean < 0.5


def test_hashes_that_were_kept_beside_the_package_s_weights_do_no_harm(tmp_path, monkeypatch):
    """Whoever gives the package's folder as a model leaves them there."""
    source = tmp_path / "package"
    shutil.copytree(bundled.MICRO_FOLDER, source, ignore=shutil.ignore_patterns(MANIFEST))
    assert weights_version(source)
    assert (source / MANIFEST).is_file()
    monkeypatch.setattr(bundled, "MICRO_FOLDER", source)
    monkeypatch.setitem(bundled.BUNDLED, "micro", source)
    made = bundled.bundled_folder("micro", tmp_path / "cache", print)
    assert bundled.bundled_folder("micro", tmp_path / "cache", print) == made
    assert read_manifest(made).name == "micro"
