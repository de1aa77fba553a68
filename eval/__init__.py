"""G-eval with uncertainty and a judge that is itself judged, judge-free measures, and the report.

`from eval import evaluate, EvalOptions, GEval, load_rubric, load_judge`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.geval import Answer as Answer
    from eval.geval import GEval as GEval
    from eval.judges import load_judge as load_judge
    from eval.local_judge import LocalJudge as LocalJudge
    from eval.options import EvalOptions as EvalOptions
    from eval.report import write_report as write_report
    from eval.rubric import load_rubric as load_rubric
    from eval.run import evaluate as evaluate
    from eval.run import rebuild as rebuild

_WHERE = {
    "Answer": "eval.geval",
    "EvalOptions": "eval.options",
    "GEval": "eval.geval",
    "LocalJudge": "eval.local_judge",
    "evaluate": "eval.run",
    "load_judge": "eval.judges",
    "load_rubric": "eval.rubric",
    "rebuild": "eval.run",
    "write_report": "eval.report",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import the public names on first use (PEP 562)."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
