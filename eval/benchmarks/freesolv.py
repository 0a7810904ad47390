"""FreeSolv as questions; see `moleculenet`."""

from functools import partial

from eval.benchmarks import moleculenet

load = partial(moleculenet.load, "freesolv")
