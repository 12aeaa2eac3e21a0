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

__all__ = [
    "AgreeConfig", "Agreed", "Audit", "AuditConfig", "Case", "Checkpoint", "Conversation", "Definition", "Gate",
    "ImportedAnswers", "JudgeConfig", "JudgeRunConfig", "Judging", "ModelConfig", "Plan", "PlanConfig", "Progress",
    "Prompt", "PromptSet", "Recipe", "Rule", "Store", "Study", "Thresholds", "TruingError", "Verdict", "__version__",
    "agree", "audit", "control", "demo", "doctor", "export", "figure", "freeze", "gate", "get_model",
    "import_answers", "judge", "label", "load_conversations", "load_prompts", "plan", "sensitivity", "show",
    "study_cases", "train", "write_report",
]  # fmt: skip

if TYPE_CHECKING:
    from truing.bridges.export import export
    from truing.config import AgreeConfig, AuditConfig, JudgeConfig, JudgeRunConfig, ModelConfig, PlanConfig, Thresholds
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
    from truing.runs.gate import gate
    from truing.runs.import_answers import ImportedAnswers, import_answers
    from truing.runs.judge import Judging, judge
    from truing.runs.label import label
    from truing.runs.plan import Plan, plan
    from truing.runs.sensitivity import sensitivity
    from truing.runs.study import study_cases
    from truing.runs.train import train
    from truing.stats.studies import Definition, Study
    from truing.store import Store
    from truing.training.recipe import Recipe
    from truing.types.cases import Case
    from truing.types.gating import Gate
    from truing.types.progress import Progress
    from truing.types.records import Checkpoint, Conversation, Prompt, PromptSet
    from truing.types.traits import Rule
    from truing.types.verdicts import Verdict


_NAMES = {
    "bridges.export": "export",
    "config": "AgreeConfig AuditConfig JudgeConfig JudgeRunConfig ModelConfig PlanConfig Thresholds",
    "data.conversations": "load_conversations",
    "data.prompts": "load_prompts",
    "errors": "TruingError",
    "models.download": "get_model",
    "report.report": "figure write_report",
    "report.show": "show",
    "runs.agree": "Agreed agree",
    "runs.audit": "Audit audit",
    "runs.control": "control",
    "runs.demo": "demo",
    "runs.doctor": "doctor",
    "runs.freeze": "freeze",
    "runs.gate": "gate",
    "runs.import_answers": "ImportedAnswers import_answers",
    "runs.judge": "Judging judge",
    "runs.label": "label",
    "runs.plan": "Plan plan",
    "runs.sensitivity": "sensitivity",
    "runs.study": "study_cases",
    "runs.train": "train",
    "stats.studies": "Definition Study",
    "store": "Store",
    "training.recipe": "Recipe",
    "types.cases": "Case",
    "types.gating": "Gate",
    "types.progress": "Progress",
    "types.records": "Checkpoint Conversation Prompt PromptSet",
    "types.traits": "Rule",
    "types.verdicts": "Verdict",
}
"""module -> what of it is public, as above"""
_HOMES = {name: f"truing.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'truing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
