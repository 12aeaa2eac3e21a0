"""How long `import truing`, `truing --help` and `truing show AUDIT` take, as whole processes; AUDIT is a simulated one.

python benchmarks/startup.py [--json FILE] [--repeats 5]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import rows

import truing

OPTIONS = {"judge": "simulated:", "control": "simulated:late", "limit": 60}
CLI = ["-m", "truing.cli"]


def process(*arguments):
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main():
    args = rows.options(__doc__, repeats=5)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "audit"
        truing.audit("simulated:late", out=out, **OPTIONS)
        arms = {
            "empty": process("-c", "pass"),
            "import truing": process("-c", "import truing"),
            "truing --help": process(*CLI, "--help"),
            "truing show AUDIT": process(*CLI, "show", str(out)),
        }
        spent = {name: rows.middle(s).wall for name, s in rows.alternate(arms, args.repeats).items()}
    added = spent["import truing"] - spent["empty"]
    found = [rows.row("seconds over an empty interpreter", "import truing", added, most=0.3)]
    for case, most in (("truing --help", 0.5), ("truing show AUDIT", 1.0)):
        found.append(rows.row("seconds", case, spent[case], most=most))
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
