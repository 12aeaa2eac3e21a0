"""truing: find where a fine-tune goes out of true, and stop before it.

The main job is one call, and every command of the command line is the function of the same name:

    import truing

    result = truing.audit("out/", task="heldout.jsonl", control="out-control/")
    print(result.verdict.sentence)
    truing.write_report(result.path)

Importing this package loads neither torch nor transformers; names are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truing._version import __version__

_HOMES = {
    "Agreed": "truing.runs.agree",
    "Audit": "truing.runs.audit",
    "AuditOptions": "truing.config.options",
    "Case": "truing.types.cases",
    "Checkpoint": "truing.types.records",
    "Conversation": "truing.types.records",
    "Definition": "truing.stats.studies",
    "EmRule": "truing.config.options",
    "Gate": "truing.stats.gate",
    "ImportedAnswers": "truing.runs.import_answers",
    "JudgeOptions": "truing.types.judged",
    "Judging": "truing.runs.judge",
    "ModelOptions": "truing.config.options",
    "Plan": "truing.runs.plan",
    "PowerOptions": "truing.runs.plan",
    "Prompt": "truing.types.records",
    "PromptSet": "truing.types.records",
    "Recipe": "truing.training.recipe",
    "RunVerdict": "truing.types.verdicts",
    "Store": "truing.store",
    "Study": "truing.runs.study",
    "TruingError": "truing.errors",
    "VerdictRule": "truing.config.options",
    "agree": "truing.runs.agree",
    "audit": "truing.runs.audit",
    "control": "truing.runs.control",
    "demo": "truing.runs.demo",
    "doctor": "truing.runs.doctor",
    "export": "truing.bridges.export",
    "figure": "truing.report.report",
    "freeze": "truing.runs.freeze",
    "gate": "truing.stats.gate",
    "get_model": "truing.models.download",
    "import_answers": "truing.runs.import_answers",
    "judge": "truing.runs.judge",
    "label": "truing.runs.label",
    "load_conversations": "truing.data.conversations",
    "load_prompts": "truing.data.prompts",
    "plan": "truing.runs.plan",
    "write_report": "truing.report.report",
    "sensitivity": "truing.runs.sensitivity",
    "show": "truing.report.show",
    "study_cases": "truing.runs.study",
    "train": "truing.runs.train",
}

__all__ = [
    "Agreed",
    "Audit",
    "AuditOptions",
    "Case",
    "Checkpoint",
    "Conversation",
    "Definition",
    "EmRule",
    "Gate",
    "ImportedAnswers",
    "JudgeOptions",
    "Judging",
    "ModelOptions",
    "Plan",
    "PowerOptions",
    "Prompt",
    "PromptSet",
    "Recipe",
    "RunVerdict",
    "Store",
    "Study",
    "TruingError",
    "VerdictRule",
    "__version__",
    "agree",
    "audit",
    "control",
    "demo",
    "doctor",
    "export",
    "figure",
    "freeze",
    "gate",
    "get_model",
    "import_answers",
    "judge",
    "label",
    "load_conversations",
    "load_prompts",
    "plan",
    "sensitivity",
    "show",
    "study_cases",
    "train",
    "write_report",
]

if TYPE_CHECKING:
    from truing.bridges.export import export
    from truing.config.options import AuditOptions, EmRule, ModelOptions, VerdictRule
    from truing.data.conversations import load_conversations
    from truing.data.prompts import load_prompts
    from truing.errors import TruingError
    from truing.models.download import get_model
    from truing.report.report import figure, write_report
    from truing.report.show import show
    from truing.runs.agree import Agreed, agree
    from truing.runs.audit import Audit, audit
    from truing.runs.control import control
    from truing.runs.demo import demo
    from truing.runs.doctor import doctor
    from truing.runs.freeze import freeze
    from truing.runs.import_answers import ImportedAnswers, import_answers
    from truing.runs.judge import Judging, judge
    from truing.runs.label import label
    from truing.runs.plan import Plan, PowerOptions, plan
    from truing.runs.sensitivity import sensitivity
    from truing.runs.study import Study, study_cases
    from truing.runs.train import train
    from truing.stats.gate import Gate, gate
    from truing.stats.studies import Definition
    from truing.store import Store
    from truing.training.recipe import Recipe
    from truing.types.cases import Case
    from truing.types.judged import JudgeOptions
    from truing.types.records import Checkpoint, Conversation, Prompt, PromptSet
    from truing.types.verdicts import RunVerdict


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'truing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
