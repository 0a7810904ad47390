"""Makes the trajectory builder importable as `episodes`, and the scripted policy as `scripted`."""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def _load(name, path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


_load("episodes", _HERE / "episodes.py")
_load("scripted", _HERE.parent.parent / "agent" / "scripted.py")
