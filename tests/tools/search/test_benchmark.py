import importlib.util
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def test_the_builds_that_are_timed_start_from_nothing(corpus, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_search", BENCHMARKS / "search.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_search", module)
    spec.loader.exec_module(module)
    reports, build = [], module.build_index

    def build_index(*arguments):
        reports.append(build(*arguments))
        return reports[-1]

    monkeypatch.setattr(module, "build_index", build_index)
    monkeypatch.setattr(module, "RATE_ROUNDS", 1)
    for _ in range(2):
        module.measure_build(corpus, tmp_path)
    assert [report.embedded for report in reports] == [6, 6]
