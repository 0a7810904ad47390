"""Credit assignment: from rewards per turn to advantages per token, with every step on record.

Pure functions of a `Batch`; nothing here knows models, logs or files. `estimate` runs one by name.
What each computes, and whether it is unbiased, is in docs/credit.md.
"""

from rl.credit.group import Batch, CreditError, RewardPart
from rl.credit.ledger import Credit, Ledger, PartAccount, Term, TermReceipt, TurnReceipt, Unit
from rl.credit.registry import ESTIMATORS, Estimator, estimate, find
from rl.credit.settle import drop_and_count, problems

__all__ = [
    "ESTIMATORS",
    "Batch",
    "Credit",
    "CreditError",
    "Estimator",
    "Ledger",
    "PartAccount",
    "RewardPart",
    "Term",
    "TermReceipt",
    "TurnReceipt",
    "Unit",
    "drop_and_count",
    "estimate",
    "find",
    "problems",
]
