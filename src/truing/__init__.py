"""truing: find where a fine-tune goes out of true, and stop before it.

The main job is one call, and every command of the command line is the function of the same name:

    import truing

    result = truing.audit("out/", task="heldout.jsonl", control="out-control/")
    print(result.verdict.sentence)
    truing.report(result.path)

Importing this package loads neither torch nor transformers; names are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truing._version import __version__

_HOMES = {
    "Agreed": "truing.study.agree",
    "Audit": "truing.study.audit",
    "AuditOptions": "truing.base.options",
    "Case": "truing.base.cases",
    "Checkpoint": "truing.base.records",
    "Conversation": "truing.base.records",
    "Definition": "truing.stats.studies",
    "EmRule": "truing.base.options",
    "Gate": "truing.stats.gate",
    "ImportedAnswers": "truing.study.import_answers",
    "JudgeOptions": "truing.base.judged",
    "Judging": "truing.study.judge",
    "ModelOptions": "truing.base.options",
    "Plan": "truing.study.plan",
    "PowerOptions": "truing.study.plan",
    "Prompt": "truing.base.records",
    "PromptSet": "truing.base.records",
    "Recipe": "truing.base.recipe",
    "RunVerdict": "truing.base.verdicts",
    "Store": "truing.base.store",
    "Study": "truing.study.study",
    "TruingError": "truing.base.errors",
    "VerdictRule": "truing.base.options",
    "agree": "truing.study.agree",
    "audit": "truing.study.audit",
    "control": "truing.study.control",
    "demo": "truing.study.demo",
    "doctor": "truing.study.doctor",
    "export": "truing.bridges.export",
    "freeze": "truing.study.freeze",
    "gate": "truing.stats.gate",
    "get_model": "truing.backends.models",
    "import_answers": "truing.study.import_answers",
    "judge": "truing.study.judge",
    "label": "truing.study.label",
    "load_conversations": "truing.data.conversations",
    "load_prompts": "truing.data.prompts",
    "plan": "truing.study.plan",
    "report": "truing.view.report",
    "sensitivity": "truing.study.sensitivity",
    "show": "truing.view.show",
    "study_cases": "truing.study.study",
    "train": "truing.study.train",
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
    "freeze",
    "gate",
    "get_model",
    "import_answers",
    "judge",
    "label",
    "load_conversations",
    "load_prompts",
    "plan",
    "report",
    "sensitivity",
    "show",
    "study_cases",
    "train",
]

if TYPE_CHECKING:
    from truing.backends.models import get_model
    from truing.base.cases import Case
    from truing.base.errors import TruingError
    from truing.base.judged import JudgeOptions
    from truing.base.options import AuditOptions, EmRule, ModelOptions, VerdictRule
    from truing.base.recipe import Recipe
    from truing.base.records import Checkpoint, Conversation, Prompt, PromptSet
    from truing.base.store import Store
    from truing.base.verdicts import RunVerdict
    from truing.bridges.export import export
    from truing.data.conversations import load_conversations
    from truing.data.prompts import load_prompts
    from truing.stats.gate import Gate, gate
    from truing.stats.studies import Definition
    from truing.study.agree import Agreed, agree
    from truing.study.audit import Audit, audit
    from truing.study.control import control
    from truing.study.demo import demo
    from truing.study.doctor import doctor
    from truing.study.freeze import freeze
    from truing.study.import_answers import ImportedAnswers, import_answers
    from truing.study.judge import Judging, judge
    from truing.study.label import label
    from truing.study.plan import Plan, PowerOptions, plan
    from truing.study.sensitivity import sensitivity
    from truing.study.study import Study, study_cases
    from truing.study.train import train
    from truing.view.report import report
    from truing.view.show import show


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'truing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
