"""Every option, once: a frozen model per verb, composed of the parts that lower layers read."""

from truing.config.base import BadOption, Config, NotAsked, Unit, check_filed, configured, near
from truing.config.parts import JudgeConfig, ModelConfig, RuleConfig, Thresholds
from truing.config.verbs import (
    AgreeConfig,
    AuditConfig,
    ControlConfig,
    DemoConfig,
    FreezeConfig,
    GateConfig,
    ImportConfig,
    JudgeRunConfig,
    LabelConfig,
    PlanConfig,
    StudyConfig,
)

__all__ = [
    "AgreeConfig",
    "AuditConfig",
    "BadOption",
    "Config",
    "ControlConfig",
    "DemoConfig",
    "FreezeConfig",
    "GateConfig",
    "ImportConfig",
    "JudgeConfig",
    "JudgeRunConfig",
    "LabelConfig",
    "ModelConfig",
    "NotAsked",
    "PlanConfig",
    "RuleConfig",
    "StudyConfig",
    "Thresholds",
    "Unit",
    "check_filed",
    "configured",
    "near",
]
