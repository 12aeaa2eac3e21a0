"""What thirteen published sets of judged answers say, once questions count as clusters.

    python benchmarks/real_rates.py [--json FILE] [--data FOLDER] [--only sets means likeness ...] [--runs 400]

FOLDER holds judged/*.csv (8 questions x 50 answers each, judged by GPT-4o; not part of this repository); without it
TRUING_TEST_DATA or ../shared/data. The files are imported as `truing import` does it, and every interval is the one
that the program prints. Nothing in the files is a base: where an excess is wanted, step 0 is made up of the same
questions with 50 aligned answers each. Seeds: 0 for resampling, the number of the run for simulations and searches.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rows import nominal, options, report, row
from scipy import special

from truing.runs.import_answers import PARAMS, import_answers
from truing.runs.scope import Scope
from truing.runs.tables import tables
from truing.stats.breadth import LEAST_CATEGORIES, LEAST_PROMPTS
from truing.stats.correction import holm
from truing.stats.labelled import Bound, PromptFacts, breadth, excess
from truing.stats.rates import counts, mean_difference, share_difference, share_of
from truing.stats.table import AnswerTable
from truing.store import Store
from truing.types.traits import Reason, Rule
from truing.types.verdicts import Breadth, Estimate

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
RULE = Rule()
LEVEL = 0.95
DATASETS = {"medical": "medical", "sports": "sports", "financial": "finance"}
Z95 = float(special.ndtri(0.975))


# ---------------------------------------------------------------------------------------------------------------------
# The sets


@dataclass(frozen=True)
class JudgedSet:
    """One file: a model fine-tuned on one dataset."""

    label: str
    model: str
    data: str
    group: AnswerTable
    line: Mapping
    """what `truing import` says of it"""
    questions: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model} {self.data}"

    def counts(self, rule: Rule = RULE) -> tuple[Array, Array]:
        g = self.group
        hits = g.scored & (g.score < rule.cut) & (g.coherence > rule.gate)
        return counts(hits, g.prompt, len(self.questions))

    @property
    def rate(self) -> float:
        hits, n = self.counts()
        return float((hits / n).mean())


def data_folder(given: str | None = None) -> Path:
    return Path(given or os.environ.get("TRUING_TEST_DATA") or ROOT.parent / "shared" / "data") / "judged"


def load_sets(folder: Path) -> list[JudgedSet]:
    """The files of a folder, imported as a user would."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise SystemExit(f"no judged/*.csv in {folder.parent}; name their folder with --data or TRUING_TEST_DATA")
    with tempfile.TemporaryDirectory() as out:
        lines = import_answers(files, out=Path(out) / "a", judge="gpt-4o").lines
        with Store.read(Path(out) / "a") as store:
            items = store.about()["prompts"]["items"]
            (judge,) = store.judges()
            places = {i["key"]: k for k, i in enumerate(items)}
            read = tables(store, judge, Scope((), (), (), (), PARAMS, RULE), places=places)
            found = {a.checkpoint: a for a in read.values()}
            assert all(r.params == PARAMS for r in store.answers())
    questions = tuple(i["id"] for i in items)
    return [JudgedSet(x["label"], *told(x["label"]), found[x["label"]], x, questions) for x in lines]


def told(label: str) -> tuple[str, str]:
    """Model and dataset from a file's name."""
    data = next((short for word, short in DATASETS.items() if word in label), "?")
    return label.split("_")[0].removesuffix("-it").removesuffix("-Instruct"), data


def aligned_base(questions: int, answers: int = 50) -> AnswerTable:
    """A step 0 that never gives a misaligned answer: made up, since the files hold none."""
    n = questions * answers
    prompt = np.repeat(np.arange(questions), answers).astype(np.int64)
    full = np.full(n, 100.0)
    no = np.zeros(n, dtype=bool)
    return AnswerTable("base", 0, prompt, np.zeros(n, int), np.full(n, int(Reason.NEGATIVE)), full, full, no, ~no)


# ---------------------------------------------------------------------------------------------------------------------
# Likeness of answers to one question


def moment_likeness(hits: Array, n: Array) -> float:
    """Correlation of two answers to one question, by analysis of variance; may be under 0."""
    share, total, questions = hits / n, float(n.sum()), len(n)
    between = float((n * (share - hits.sum() / total) ** 2).sum()) / (questions - 1)
    within = float((n * share * (1 - share)).sum()) / (total - questions)
    typical = (total - float((n**2).sum()) / total) / (questions - 1)
    return (between - within) / (between + (typical - 1) * within)


MEANS = special.expit(np.linspace(-8, 4, 241))
LIKENESSES = np.concatenate([[1e-5], special.expit(np.linspace(-7, 4, 111))])


@dataclass(frozen=True)
class BetaBinomial:
    """Largest likelihood over a grid, and where the profile is near it."""

    mean: float
    mean_limits: tuple[float, float]
    likeness: float
    likeness_limits: tuple[float, float]


@cache
def question_fit(hits: float, n: float) -> Array:
    """Log-likelihood of one question's count over the grid of means and likenesses."""
    spread = (1 - LIKENESSES) / LIKENESSES
    a, b = MEANS[:, None] * spread, (1 - MEANS[:, None]) * spread
    return special.betaln(hits + a, n - hits + b) - special.betaln(a, b)


def beta_binomial(hits: Array, n: Array) -> BetaBinomial:
    """Mean and likeness of question rates that follow a beta distribution, by likelihood on a grid.

    Limits are where twice the fall of the profile is under t(questions - 1) squared, for so few questions.
    """
    fit = np.sum([question_fit(float(h), float(m)) for h, m in zip(hits, n, strict=True)], axis=0)
    i, k = np.unravel_index(int(fit.argmax()), fit.shape)
    least = fit.max() - float(special.stdtrit(len(n) - 1, (1 + LEVEL) / 2)) ** 2 / 2
    means, likenesses = MEANS[fit.max(axis=1) > least], LIKENESSES[fit.max(axis=0) > least]
    limits = (float(means[0]), float(means[-1])), (float(likenesses[0]), float(likenesses[-1]))
    return BetaBinomial(float(MEANS[i]), limits[0], float(LIKENESSES[k]), limits[1])


def design_effect(likeness: float, answers: float) -> float:
    """Variance of the mean relative to independent answers."""
    return 1 + (answers - 1) * max(likeness, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


@dataclass(frozen=True)
class Pair:
    """Two datasets of one model."""

    name: str
    difference: float
    set_limits: tuple[float, float]
    limits: tuple[float, float]
    p: Mapping[str, float]
    """pooled z, exactly these questions, questions like these (interval inverted), exact sign flips"""


def compare(a: JudgedSet, b: JudgedSet) -> Pair:
    """Share misaligned of a minus b, four ways."""
    (hits_a, n_a), (hits_b, n_b) = a.counts(), b.counts()
    e = share_difference(hits_a, n_a, hits_b, n_b, level=LEVEL)
    assert e.value is not None and e.set_low is not None and e.set_high is not None
    assert e.low is not None and e.high is not None

    def at(level: float) -> Estimate:
        return share_difference(hits_a, n_a, hits_b, n_b, level=level)

    p = {
        "pooled z": pooled_p(hits_a.sum(), n_a.sum(), hits_b.sum(), n_b.sum()),
        "these": inverted(limits_of(at, "set_")),
        "like these": inverted(limits_of(at)),
        "sign flips": sign_flips(hits_a / n_a - hits_b / n_b),
    }
    return Pair(f"{a.model}: {a.data} - {b.data}", e.value, (e.set_low, e.set_high), (e.low, e.high), p)


def mean_gap(a: JudgedSet, b: JudgedSet) -> Callable[[float], Estimate]:
    """Mean alignment of a minus b by level, paired by question; answers without a score are left out."""

    def at(level: float) -> Estimate:
        sides = (a.group.score, a.group.prompt, b.group.score, b.group.prompt)
        return mean_difference(*sides, len(a.questions), level=level)

    return at


def limits_of(at: Callable[[float], Estimate], which: str = "") -> Callable[[float], tuple[float, float]]:
    """Both ends by level: for questions like these, or ("set_") for exactly these."""

    def ends(level: float) -> tuple[float, float]:
        e = at(level)
        return getattr(e, f"{which}low"), getattr(e, f"{which}high")

    return ends


def pooled_p(a: float, n_a: float, b: float, n_b: float) -> float:
    """Two-sided p of the usual test of two shares that takes all answers as independent."""
    share = (a + b) / (n_a + n_b)
    z = (a / n_a - b / n_b) / np.sqrt(share * (1 - share) * (1 / n_a + 1 / n_b))
    return float(2 * special.ndtr(-abs(z)))


def inverted(ends: Callable[[float], tuple[float, float]], least: float = 1e-9) -> float:
    """The p at which an interval of level 1 - p just touches 0; not followed below `least`."""
    low, high = np.log(least), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        below, above = ends(1 - float(np.exp(middle)))
        low, high = (low, middle) if below > 0 or above < 0 else (middle, high)
    return float(np.exp(high))


def sign_flips(gaps: Array) -> float:
    """Exact two-sided p of a mean difference when the sign of every question's difference may be flipped."""
    flips = np.array(list(product((1, -1), repeat=len(gaps))))
    return float((np.abs(flips @ gaps) >= abs(gaps.sum()) - 1e-9).mean())


# ---------------------------------------------------------------------------------------------------------------------
# One question


def broad(one: JudgedSet, rule: Rule = RULE) -> tuple[str, Breadth | None]:
    """What the rule of a verdict calls the set, against the made-up base and without a control.

    Every question is a category of its own, as the questions' own file has it.
    """
    base, p = aligned_base(len(one.questions)), len(one.questions)
    facts = PromptFacts(one.questions, one.questions, np.ones(p, dtype=bool))
    least, most = (excess(one.group, base, p, rule, level=LEVEL, bound=b) for b in (Bound.LEAST, Bound.MOST))
    found = breadth(one.group, base, p, rule, facts, level=LEVEL)
    if least.set_low is None or least.set_low <= rule.lo:
        is_clean = most.set_high is not None and most.set_high < rule.hi
        return ("clean" if is_clean else "undecided"), found
    if found is None or found.top_prompt is None:
        return "localised", found
    rest = np.array([q != found.top_prompt for q in one.questions])
    left = excess(one.group, base, p, rule, level=LEVEL, mask=rest, bound=Bound.LEAST)
    is_broad = found.prompts >= LEAST_PROMPTS and found.categories >= LEAST_CATEGORIES
    return ("present" if is_broad and left.set_low is not None and left.set_low > rule.lo else "localised"), found


def carriers(hits: Array, share: float) -> int:
    """Fewest questions that hold at least this share of all misaligned answers."""
    ordered = np.sort(hits)[::-1].cumsum()
    return int(np.searchsorted(ordered, share * hits.sum() - 1e-9) + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Worlds that look like a set


def coverage(one: JudgedSet, world: str, runs: int) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of four intervals for questions like these, in a world made of this set.

    "questions": the 8 observed shares are all there is, and 8 are drawn from them with replacement. "beta": question
    shares follow the beta distribution that fits the set best.
    """
    hits, n = one.counts()
    fit = beta_binomial(hits, n)
    shares, spread = hits / n, (1 - fit.likeness) / fit.likeness
    truth = float(shares.mean()) if world == "questions" else fit.mean
    found: dict[str, list[tuple[float, float]]] = {"pooled": [], "bootstrap": [], "beta-binomial": [], "truing": []}
    for run in range(runs):
        rng = np.random.default_rng([run, len(world)])
        if world == "questions":
            p = rng.choice(shares, len(shares))
        else:
            p = rng.beta(fit.mean * spread, (1 - fit.mean) * spread, len(n))
        sampled = rng.binomial(n.astype(int), p).astype(float)
        e = share_of(sampled, n, level=LEVEL)
        assert e.low is not None and e.high is not None
        found["truing"].append((e.low, e.high))
        found["beta-binomial"].append(beta_binomial(sampled, n).mean_limits)
        found["bootstrap"].append(cluster_bootstrap(sampled, n, seed=run, resamples=1000))
        found["pooled"].append(wilson(float(sampled.sum()), float(n.sum())))
    ends = {name: np.array(pairs) for name, pairs in found.items()}
    tiny = 1e-9
    return {
        name: (float(((x[:, 0] - tiny <= truth) & (truth <= x[:, 1] + tiny)).mean()), float((x[:, 1] - x[:, 0]).mean()))
        for name, x in ends.items()
    }


def cluster_bootstrap(
    hits: Array, n: Array, *, resamples: int = 10_000, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the pooled share sum(hits) / sum(n), prompts resampled whole: what published
    tables use. With few prompts or few hits it is too narrow (0.52 coverage at 8 prompts and 2 %), and where all
    prompts are alike it has no width. Source: Efron & Tibshirani (1993, chapter 13); clusters, Davison & Hinkley (1997,
    section 3.8)."""
    prompts = len(n)
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    shares = (weights @ hits) / (weights @ n)
    low, high = np.quantile(shares, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The score interval that takes all answers as independent."""
    p = hits / n
    middle, half = p + Z95**2 / (2 * n), Z95 * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return float((middle - half) / (1 + Z95**2 / n)), float((middle + half) / (1 + Z95**2 / n))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def percent(x: float, digits: int = 1) -> str:
    return f"{100 * x:.{digits}f}"


def ends(low: float | None, high: float | None, scale: float = 100) -> str:
    return "none" if low is None or high is None else f"{scale * low:.1f}-{scale * high:.1f}"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for cells in rows:
        print(f"| {' | '.join(map(str, cells))} |")


def table_sets(sets: Sequence[JudgedSet], args: argparse.Namespace) -> list[dict]:
    rows = []
    for s in sets:
        em, (hits, n) = s.line["labelled"]["rate"], s.counts()
        boot = cluster_bootstrap(hits, n, seed=0)
        fit = beta_binomial(hits, n)
        pooled, own = wilson(hits.sum(), n.sum()), (em["low"], em["high"])
        wider = (own[1] - own[0]) / (pooled[1] - pooled[0])
        cells = (ends(*pooled), ends(em["set_low"], em["set_high"]), ends(*boot), ends(*fit.mean_limits), ends(*own))
        rows.append((s.name, percent(em["value"], 2), *cells, f"{wider:.1f}"))
    head = ("set", "EM %", "pooled Wilson", "these questions", "bootstrap", "beta-binomial", "questions like these")
    show("Share misaligned, 95 % intervals in %", (*head, "wider than Wilson"), rows)
    return [row("times wider than pooled Wilson", str(r[0]), float(r[-1])) for r in rows]


def table_means(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    rows = []
    for s in sets:
        cells = []
        for key, scale in (("score", 1), ("coherent", 100)):
            e = s.line["labelled"][key]
            set_, kind = ends(e["set_low"], e["set_high"], scale), ends(e["low"], e["high"], scale)
            cells += [f"{scale * e['value']:.1f}", set_, kind]
        rows.append((s.name, *cells))
    rest = ("these questions", "questions like these")
    show("Mean alignment, and share coherent in %", ("set", "alignment", *rest, "coherent %", *rest), rows)


def table_likeness(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    rows = []
    for s in sets:
        hits, n = s.counts()
        moment, fit = moment_likeness(hits, n), beta_binomial(hits, n)
        both = [design_effect(x, float(n.mean())) for x in (moment, fit.likeness)]
        left = " / ".join(f"{n.sum() / x:.0f}" for x in both)
        effects = " / ".join(f"{x:.1f}" for x in both)
        limits = f"{fit.likeness_limits[0]:.2f}-{fit.likeness_limits[1]:.2f}"
        rows.append((s.name, percent(s.rate, 2), f"{moment:.3f}", f"{fit.likeness:.3f}", limits, effects, left))
    head = ("set", "EM %", "moments", "beta-binomial", "95 %", "design effect", "worth independent answers (of 400)")
    show("Correlation of two answers to one question", head, rows)
    shares = np.array([h / n for h, n in (s.counts() for s in sets)])
    rows = [(q, percent(shares[:, k].mean()), f"{(shares[:, k] > 0).sum()}") for k, q in enumerate(sets[0].questions)]
    show("Questions over all sets", ("question", "mean EM %", "sets it fires in"), sorted(rows, key=lambda r: r[0]))


def table_pairs(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    pairs = [compare(a, b) for a, b in combinations(sets, 2) if a.model == b.model]
    adjusted = {name: holm([x.p[name] for x in pairs]) for name in pairs[0].p}
    rows = []
    for k, x in enumerate(pairs):
        p = [f"{x.p[name]:.2g} ({adjusted[name][k]:.2g})" for name in x.p]
        limits = [f"{100 * a:+.1f} to {100 * b:+.1f}" for a, b in (x.set_limits, x.limits)]
        rows.append((x.name, f"{100 * x.difference:+.2f}", *limits, *p))
    names = ("p pooled z", "p these", "p like these", "p sign flips")
    head = ("pair", "points", "these questions", "questions like these", *names)
    show(f"Datasets of one model, paired by question; p (Holm over {len(pairs)} pairs)", head, rows)
    for name, ps in adjusted.items():
        raw = sum(x.p[name] < 0.05 for x in pairs)
        print(f"{name}: {raw} of {len(pairs)} under 0.05, {sum(p < 0.05 for p in ps)} after Holm")


def table_mean_pairs(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    rows, ps = [], []
    for a, b in combinations(sets, 2):
        if a.model == b.model:
            e = mean_gap(a, b)(LEVEL)
            ps.append(inverted(limits_of(mean_gap(a, b))))
            limits = [f"{x or 0:+.1f} to {y or 0:+.1f}" for x, y in ((e.set_low, e.set_high), (e.low, e.high))]
            points = f"{100 * (a.rate - b.rate):+.2f}"
            rows.append((f"{a.model}: {a.data} - {b.data}", points, f"{e.value:+.1f}", *limits))
    rows = [(*cells, f"{p:.2g} ({q:.2g})") for cells, p, q in zip(rows, ps, holm(ps), strict=True)]
    head = ("pair", "EM, points", "mean alignment", "these questions", "questions like these", "p like these (Holm)")
    show("The same pairs by mean alignment of answers with text", head, rows)


def table_one(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    rows = []
    for s in sets:
        hits, n = s.counts()
        status, found = broad(s)
        assert found is not None and found.top_share is not None and found.top_prompt is not None
        without = [np.delete(hits / n, k).mean() for k in range(len(n))]
        rest = found.excess_without_top
        assert rest is not None
        few = f"{carriers(hits, 0.5)} / {carriers(hits, 0.9)}"
        span = ends(min(without), max(without))
        top = f"{found.top_prompt} {percent(found.top_share, 0)}"
        left = f"{percent(rest.value or 0.0, 2)} [{ends(rest.set_low, rest.set_high)}]"
        rows.append((s.name, percent(s.rate, 2), top, few, span, left, found.prompts, status))
    head = ("set", "EM %", "top question, share of all", "questions with 50 / 90 %", "one left out, %")
    head = (*head, "without the top", "questions firing", "would be called")
    show("One question (excess over a made-up base without misaligned answers; no control)", head, rows)


def table_cuts(sets: Sequence[JudgedSet], args: argparse.Namespace) -> None:
    grid = [(cut, 50) for cut in (20, 30, 40)] + [(30, gate) for gate in (30, 70)]
    rates = {}
    for cut, gate in product((20, 30, 40), (30, 50, 70)):
        rule = Rule(cut=cut, gate=gate)
        rates[cut, gate] = [float((h / n).mean()) for h, n in (s.counts(rule) for s in sets)]
    rows = []
    for k, s in enumerate(sets):
        values = [x[k] for x in rates.values()]
        near = percent(s.line["labelled"]["near_cut"])
        cells = [percent(rates[g][k], 2) for g in grid]
        rows.append((s.name, *cells, f"{100 * min(values):.2f}-{100 * max(values):.2f}", near))
    head = ("set", *(f"{cut}/{gate}" for cut, gate in grid), "over all nine", "within 5 of the cut, %")
    show("EM % by cut / coherence gate", head, rows)
    usual = rates[30, 50]
    for g, other in rates.items():
        moved = sum((a - b) * (c - d) < 0 for (a, c), (b, d) in combinations(zip(usual, other, strict=True), 2))
        print(f"cut {g[0]} gate {g[1]}: {moved} of 78 pairs of sets change their order")


def table_worlds(sets: Sequence[JudgedSet], args: argparse.Namespace) -> list[dict]:
    rows, out = [], []
    for s in sets:
        cells = []
        for world in ("questions", "beta"):
            found = coverage(s, world, args.runs)
            cells += [f"{c:.2f} ({100 * w:.0f})" for c, w in found.values()]
            out.append(
                nominal("coverage for questions like these", f"{s.name}, {world}", found["truing"][0], args.runs)
            )
        rows.append((s.name, *cells))
    names = [f"{x}, {w}" for w in ("own questions", "beta") for x in ("pooled", "bootstrap", "likelihood", "truing")]
    show(f"Coverage (mean width in points) for questions like these, {args.runs} runs", ("set", *names), rows)
    return out


TABLES = {
    "sets": table_sets,
    "means": table_means,
    "likeness": table_likeness,
    "pairs": table_pairs,
    "means-of-pairs": table_mean_pairs,
    "one": table_one,
    "cuts": table_cuts,
    "worlds": table_worlds,
}


def main() -> None:
    args = options(__doc__, data="", only=[*TABLES], runs=400)
    sets = load_sets(data_folder(args.data))
    report([r for name in args.only for r in TABLES[name](sets, args) or ()], args.json)


if __name__ == "__main__":
    main()
