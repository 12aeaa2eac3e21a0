"""How long a long audit will take on this machine, and how it could be shorter, in a line before it begins."""

from dataclasses import replace

from truing.config import PlanConfig, configured
from truing.interp.likelihoods import KIND
from truing.runs.plan import paces, planned
from truing.runs.run import Run
from truing.types.progress import duration
from truing.types.records import Request

LONG, SHORT = 120.0, 300.0
"""seconds from which on an audit is long, and that a short one may take"""


def foresight(run: Run) -> str:
    """About how long it takes, and with how many prompts it would be short; empty where it is short or unknown."""
    plan, left = run.plan, _missing(run)
    if not left or plan.simulated is not None:
        return ""
    config = configured(PlanConfig, plan.config, {})
    speeds = paces(plan.base, config)

    def seconds(limit: int) -> float:
        fewer = replace(plan, prompts=plan.prompts.only(None, limit))
        return 3600 * left * (planned(fewer, config, speeds).local_hours or 0)

    n = len(plan.prompts.prompts)
    all_of_it = seconds(n)
    if all_of_it < LONG:
        return ""
    line = f"about {duration(all_of_it)} on this machine, as fast as it is now"
    fewer = max(config.min_prompts, int(n * SHORT / all_of_it) // 4 * 4)
    return line + (f"; --limit {fewer} takes about {duration(seconds(fewer))}" if fewer < 0.8 * n else "")


def _missing(run: Run) -> float:
    """Share of the work that the store lacks, by checkpoints and prompts; 0 for none."""
    have = {(weights, item) for weights, _, item in run.store.measured(KIND)}
    wanted = {(c.weights, p.id) for c in run.every for p in run.plan.scored}
    if not wanted:
        requests = [Request(c, p, 0) for c in run.every for p in run.plan.prompts.prompts]
        return len(run.store.missing(requests, run.params)) / len(requests)
    return len(wanted - have) / len(wanted)
