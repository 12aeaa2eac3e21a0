"""Whether convergence is found where it is, on curves whose truth is known: statuses, coverage of the interval.

    python benchmarks/convergence.py [--runs 400] [--rows 10 30 100] [--only NAME] [--seed 0]

Needs no model. 12 checkpoints; held-out rows learn at their own rates (skewed) and are noisy at every checkpoint.
"true" is what the definition says of the true curve; "wrong" is the share of runs called converged where the truth is
still learning or not learned; "settled" of those called converged with the last quarter certainly under its limit,
without which nothing is said to come after convergence; coverage is of the true step among runs called converged
(nominal 0.95).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stats.convergence_worlds import CURVES, simulate, truth_of
from stats.simulated import FAST, remembered_samples


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.3])
    parser.add_argument("--only", help="one curve")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.runs} runs per cell, seed {options.seed}")
    head = (
        "curve",
        "true",
        "rows",
        "noise",
        "converged",
        "learning",
        "none",
        "falls",
        "settled",
        "coverage",
        "steps",
        "",
    )
    print("{:<18} {:>10} {:>5} {:>6} {:>10} {:>9} {:>6} {:>6} {:>8} {:>9} {:>6} {}".format(*head))
    for name, curve in CURVES.items():
        if options.only not in (None, name):
            continue
        status, at = truth_of(curve, FAST)
        true = f"step {10 * at}" if at is not None else {"still_learning": "learning"}.get(status, "none")
        for rows in options.rows:
            for noise in options.noise:
                with remembered_samples():
                    f = simulate(curve, rows=rows, noise=noise, runs=options.runs, seed=options.seed)
                cover = f"{f.coverage:.3f}" if at is not None and f.coverage is not None else "-"
                width = f"{sum(f.widths) / len(f.widths):.1f}" if f.widths else "-"
                shares = [f"{f.share(s):.3f}" for s in ("converged", "still_learning", "task_not_learned")]
                wrong = f"wrong {f.share('converged'):.3f}" if at is None else ""
                line = (
                    name,
                    true,
                    rows,
                    noise,
                    *shares,
                    f"{f.falls / f.runs:.3f}",
                    f"{f.settled / f.runs:.3f}",
                    cover,
                    width,
                    wrong,
                )
                print(
                    "{:<18} {:>10} {:>5} {:>6} {:>10} {:>9} {:>6} {:>6} {:>8} {:>9} {:>6} {}".format(*line), flush=True
                )


if __name__ == "__main__":
    main()
