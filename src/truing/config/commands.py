"""Options that only the command line has."""

from typing import ClassVar, Literal

from truing.config.base import Anywhere, Config, Place
from truing.config.verbs import AuditConfig, GateConfig, LabelConfig


class AuditCommand(AuditConfig, GateConfig):
    """An audit, and what its end decides."""

    gate: str | None = None
    """exit 3 unless recommended, last or STEP passes"""
    verbose: Anywhere[bool] = False
    """every finding and number, not the first screen alone"""


class TrainConfig(Config):
    """Where a run goes."""

    out: Place | None = None
    """folder; derived from the recipe if not given"""


class ShowConfig(Config):
    """What of an audit is shown."""

    anywhere: ClassVar[bool] = True

    step: int | None = None
    """everything about the checkpoint at this step"""
    prompt: str | None = None
    """one prompt's answers across steps"""
    sensitivity: bool = False
    """the verdict under a grid of thresholds: what survives, what does not"""
    verbose: bool = False
    """every finding and number, not the first screen alone"""


class ReportConfig(Config):
    """Where a report goes."""

    out: Place | None = None
    """HTML file; report.html in the audit folder if not given"""


class ExportConfig(Config):
    """What an audit becomes."""

    to: Anywhere[Literal["parquet", "csv", "inspect"]]
    """what to write; inspect is a log that `inspect view` opens"""
    out: Place | None = None
    """file to write"""


class LabelCommand(LabelConfig):
    """A sheet, and whether it is filled in here."""

    sheet_only: Anywhere[bool] = False
    """write the sheet, ask nothing"""
