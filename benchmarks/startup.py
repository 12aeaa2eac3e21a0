"""How long `import truing` and `truing --help` take, as whole processes.

python benchmarks/startup.py [--json] [--repeats 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

CASES = {"import truing": ["-c", "import truing"], "truing --help": ["-m", "truing.cli", "--help"]}


def seconds(arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = []
    for case, arguments in CASES.items():
        empty, ours = [], []
        for _ in range(args.repeats):
            empty.append(seconds(["-c", "pass"]))
            ours.append(seconds(arguments))
        added = statistics.median(ours) - statistics.median(empty)
        target = {"import truing": 0.3, "truing --help": 0.5}[case]
        found.append(
            {"metric": "time added to an empty interpreter", "case": case, "ours": round(added, 3),
             "baseline": round(statistics.median(empty), 3), "ratio": None, "unit": "s", "target": target,
             "met": added <= target}
        )  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"python benchmarks/startup.py at {commit}; load {os.getloadavg()[0]:.2f}; median of {args.repeats}")
    for f in found:
        print(f"{f['case']:<20} +{f['ours']} s (empty interpreter {f['baseline']} s), target {f['target']}")


if __name__ == "__main__":
    main()
