"""Plugins: kinds (how a correction is computed), parts (one person's numbers of a kind), and the files that hold them.

A new kind is one file here, which imports plugins.base, and one line below. The room imports only `contract`, and where
files are kept.
"""

from sideplug.plugins.attention import Attention
from sideplug.plugins.base import Kind, Part, PartReply, TrainedKind, TrainedPart, kind_named, register, trained_kinds
from sideplug.plugins.ladder import Ladder
from sideplug.plugins.mlp import Mlp
from sideplug.plugins.paper import Paper, PaperAdded
from sideplug.plugins.plugin import Plugin
from sideplug.plugins.validate import ANY_BASE

for each in (Ladder(), Mlp(), Attention(), Paper(), PaperAdded()):
    register(each)

__all__ = [
    "ANY_BASE",
    "Kind",
    "Part",
    "PartReply",
    "Plugin",
    "TrainedKind",
    "TrainedPart",
    "kind_named",
    "register",
    "trained_kinds",
]
