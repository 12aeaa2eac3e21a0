"""Wall time and peak memory of the demos and the test suites, each as a whole process.

    python benchmarks/demo.py [--json] [--only quick full planted fast test]

Run it on an idle machine: two busy jobs on two cores make each other many times slower.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

DEMO = [sys.executable, "-m", "truing.cli", "demo", "--out"]
TESTS = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m"]
CASES = {
    "simulated": ([*DEMO, "{out}", "--simulated"], 20),
    "quick": ([*DEMO, "{out}", "--quick"], 120),
    "full": ([*DEMO, "{out}"], 600),
    "fast": ([*TESTS, "not torch and not model and not slow"], 60),
    "test": ([*TESTS, "not slow"], 240),
}
MEMORY = {"quick": 4.0, "full": 4.0}


def measure(command):
    """Seconds and GiB. The peak is of the largest process so far, so cases are run in order of size."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run([part.format(out=out) for part in command], check=True, capture_output=True)
        return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", choices=CASES, default=["simulated", "quick", "full"])
    args = parser.parse_args()
    found = []
    for case in args.only:
        command, target = CASES[case]
        seconds, peak = measure(command)
        row = {"metric": "wall time", "case": case, "ours": round(seconds, 1), "baseline": None, "ratio": None}
        found.append({**row, "unit": "s", "target": target, "met": seconds <= target})
        if case in MEMORY:
            row |= {"metric": "peak memory", "ours": round(peak, 2)}
            found.append({**row, "unit": "GiB", "target": MEMORY[case], "met": peak <= MEMORY[case]})
    if args.json:
        print(json.dumps(found, indent=1))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"python benchmarks/demo.py at {commit}; load {os.getloadavg()[0]:.2f}")
    for f in found:
        print(f"{f['case']:<8} {f['metric']:<12} {f['ours']:>7} {f['unit']:<4} target {f['target']:<6} "
              f"{'met' if f['met'] else 'NOT MET'}")  # fmt: skip


if __name__ == "__main__":
    main()
