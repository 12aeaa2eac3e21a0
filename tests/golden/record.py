"""Record the golden results anew: `python tests/golden/record.py [SECTION ...]`, all sections without an argument.

Each section writes the JSON files that the tests of the same name compare with; `git diff` then shows a line for each
case that changed. Record a section again only where a definition was changed on purpose, and say so in the changelog.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden import cases, results


def runs(section):
    """What is said of every run, and its numbers, part by part."""
    names, run = cases.RUNS[section]
    parts = {}
    for name in names:
        with TemporaryDirectory() as folder, cases.own_cache():
            for part, found in cases.parts(name, *run(name, Path(folder))).items():
                parts.setdefault(f"{section}_{part}", {})[name] = found
    return parts


def imported():
    """The published tables through the import."""
    with TemporaryDirectory() as folder:
        return {"imported": cases.run_imported(Path(folder))}


SECTIONS = {
    "labels": lambda: {"labels": cases.run_labels()},
    "numbers": lambda: {"numbers": {name: cases.run_number(case) for name, case in cases.number_cases()}},
    "imported": imported,
    "searches": lambda: {"searches": {name: cases.run_search(*case) for name, case in cases.SEARCHES.items()}},
    "scans": lambda: {"scans": {name: cases.run_scan(*case) for name, case in cases.SCANS.items()}},
    **{section: lambda s=section: runs(s) for section in cases.RUNS},
}

if __name__ == "__main__":
    for given in sys.argv[1:] or SECTIONS:
        began = time.monotonic()
        for file, found in SECTIONS[given]().items():
            results.save(file, found)
        print(f"{given}: {time.monotonic() - began:.1f} s")
