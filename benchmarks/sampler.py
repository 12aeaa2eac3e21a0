"""How fast answers of many checkpoints are drawn: ours against what transformers and PEFT offer.

    python benchmarks/sampler.py RUN8 RUN32 [--cases checkpoints,adapters,mixed,draws,memory] [--ranks 8,32]
        [--waves 1,3] [--repeats 5] [--scale 1.0] [--dtype float32] [--threads 1] [--max-load 1.0] [--memory 0.5]
        [--json FILE]

RUN8 and RUN32 are folders of adapter checkpoints of smollm2-135m, as `truing train` leaves them. Ours and each baseline
alternate in one process with the same model, number type, prompts, lengths and sampling parameters (temperature 1,
top_p 1). Answer lengths are one log-normal list (sigma 0.6, seed 5, capped); only tokens within them count. A row of
ours ends at its length, a batch of `generate` runs until its longest row ends. Loading adapters and stacking them, done
once, is in no figure. Ratios of CPU seconds on one thread decide; `--threads 2` adds a second pass, for wall time. An
arm during which others used more than `--max-load` cores is discarded and repeated, twice at most, then kept and marked
with *.

The bound beside each figure adds up, over its own passes, max(bytes / read rate, FLOPs / matmul rate) of the layers,
the head, the adapters, and the keys and values; both rates are measured at the start.
"""

import argparse
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch
from peft import PeftModel
from torch.nn.functional import linear
from transformers import GenerationConfig

from truing.backends.adapters import AdapterStack, lora_factors
from truing.backends.chat import ChatFormat
from truing.backends.checkpoints import checkpoint_path, find_run
from truing.backends.loading import load_model, load_tokenizer
from truing.backends.models import resolve_model
from truing.backends.sampler import Job, Sampler, pass_bytes, row_bytes
from truing.backends.sessions import ROWS, Sessions
from truing.backends.trunk import Trunk
from truing.base.options import ModelOptions
from truing.base.records import Message, SamplingParams
from truing.data.prompts import load_prompts

SEED, SIGMA, EACH = 5, 0.6, 4
PARAMS = SamplingParams(temperature=1.0, top_p=1.0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = ("checkpoints", "adapters", "mixed", "draws", "memory")


def lengths(n, typical, cap):
    """One list for all arms: log-normal with median `typical`; the first n of it."""
    normal = torch.randn(n, generator=torch.Generator().manual_seed(SEED))
    return (normal * SIGMA).exp().mul(typical).round().clamp(2, cap).int().tolist()


def chunks(jobs, n):
    return [jobs[k : k + n] for k in range(0, len(jobs), n)]


# ---------------------------------------------------------------------------------------------------------------------
# What a run did, and the least time it can take


class Step(NamedTuple):
    """A pass over the layers."""

    tokens: int  # through the layers
    heads: int  # through the head
    adapters: int  # whose factors are read
    reads: int  # tokens of keys and values read
    pairs: int  # (query, key) pairs
    merges: int = 0  # adapters added to the weights and taken out again


class Drawn(NamedTuple):
    tokens: int
    steps: list[Step]
    useful: float  # row-steps that gave a token of an answer


@dataclass
class Machine:
    """Rates of this machine, and what a pass of this model needs."""

    trunk: Trunk
    rank_weights: dict[int, int] = field(default_factory=dict)  # numbers in one adapter

    def __post_init__(self):
        self.layers = sum(p.numel() for layer in self.trunk._layers for p in layer.parameters() if p.dim() == 2)
        self.head = self.trunk._head.weight.numel()
        self.itemsize = self.trunk.dtype.itemsize
        self.matmul, self.read = self._matmul_rate(), self._read_rate()

    def _matmul_rate(self, rows=80):
        """FLOP/s at the shapes of a layer, weights in cache."""
        weights = [p for p in self.trunk._layers[0].parameters() if p.dim() == 2]
        inputs = [torch.randn(rows, w.shape[1]).to(w.dtype) for w in weights]

        def once():
            for x, w in zip(inputs, weights, strict=True):
                for _ in range(8):
                    linear(x, w)

        return 8 * 2 * rows * sum(w.numel() for w in weights) / best(once)

    def _read_rate(self):
        """Bytes/s of a matrix too large for a cache, by a sum and by a matrix-vector product."""
        big = torch.ones(16384, 8192)
        vector = torch.ones(8192)
        return big.nbytes / min(best(lambda: big.sum(), 5), best(lambda: big @ vector, 5))

    def seconds(self, steps, rank=None):
        """The bound: every part of every pass takes its bytes or its FLOPs, whichever takes longer."""
        trunk, factors = self.trunk, self.rank_weights.get(rank, 0)
        kv = 2 * trunk.depth * trunk.kv_heads * trunk.head_size * self.itemsize
        pair = 4 * trunk.depth * trunk.config.num_attention_heads * trunk.head_size

        def part(numbers, flops):
            return max(numbers * self.itemsize / self.read, flops / self.matmul)

        total = 0.0
        for s in steps:
            total += part(self.layers, 2 * self.layers * s.tokens) if s.tokens else 0.0
            total += part(self.head, 2 * self.head * s.heads) if s.heads else 0.0
            total += part(factors * s.adapters, 2 * factors * s.tokens) if s.adapters else 0.0
            total += max(s.reads * kv / self.read, s.pairs * pair / self.matmul)
            # In and out again: weights read and written each time, and a product of the factors.
            products = 2 * 2 * self.layers * (rank or 0) * s.merges
            total += part((4 * self.layers + 2 * factors) * s.merges, products)
        return total


def best(run, times=20):
    run()
    found = []
    with torch.inference_mode():
        for _ in range(times):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return min(found)


# ---------------------------------------------------------------------------------------------------------------------
# One arm, once


class Recorded(Sampler):
    """Keeps what every pass needed."""

    def _pass(self, coming):
        rows = self._rows
        tails = sum(len(r.tokens) for r in rows)
        new = [len(p.prefix) for p in coming]
        prompts = {id(r.prompt): len(r.prompt.prefix) for r in rows}
        places = {r.job.place for r in rows} | {p.place for p in coming}
        steps = self.__dict__.setdefault("steps", [])
        steps.append(
            Step(
                len(rows) + sum(new), len(rows) + len(new), len(places - {-1}), sum(prompts.values()) + tails + sum(new),
                sum(len(r.prompt.prefix) for r in rows) + tails + sum(n * (n + 1) // 2 for n in new),
            )
        )  # fmt: skip
        return super()._pass(coming)


def ours(model, stack, jobs, rows):
    if stack is not None:
        model.base_model.disable_adapter_layers()
    sampler = Recorded(Trunk(model), stack, PARAMS, stop_ids=(), rows=rows)
    done = {d.index: len(d.tokens) for d in sampler.run(jobs)}
    assert done == {j.index: j.limit for j in jobs}
    return Drawn(sum(done.values()), sampler.steps, sampler.work.useful)


def generate(model, batch, adapters=0, copies=1, **more):
    """One batch by `generate`, padded on the left, until the longest of its answers ends; what its passes needed."""
    width, longest, rows = max(len(j.prefix) for j in batch), max(j.limit for j in batch), len(batch) * copies
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, job in enumerate(batch):
        ids[row, width - len(job.prefix) :] = torch.tensor(job.prefix)
        mask[row, width - len(job.prefix) :] = 1
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=longest, max_new_tokens=longest,
        num_return_sequences=copies, pad_token_id=0,
    )  # fmt: skip
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)
    assert out.shape == (rows, width + longest), f"{tuple(out.shape)} is not {(rows, width + longest)}"
    first = Step(rows * width, rows, adapters, rows * width, rows * width * (width + 1) // 2)
    seen = (rows * (width + t) for t in range(1, longest))
    return [first, *(Step(rows, rows, adapters, n, n) for n in seen)]


def in_turn(model, names, jobs, merged):
    """Checkpoint by checkpoint, in batches of 4."""
    model.base_model.enable_adapter_layers()
    steps = []
    for place, group in groupby(jobs, key=lambda j: j.place):
        if merged:
            model.merge_adapter([names[place]])
        else:
            model.set_adapter(names[place])
        for batch in chunks(list(group), EACH):
            steps += generate(model, batch, adapters=int(not merged))
        if merged:
            model.unmerge_adapter()
            steps.append(Step(0, 0, 0, 0, 0, merges=1))
    return drawn(jobs, steps)


def side_by_side(model, names, jobs, waves):
    """All checkpoints in one batch of PEFT, 4 rows of each."""
    model.base_model.enable_adapter_layers()
    steps = []
    for wave in range(waves):
        batch = [j for k, j in enumerate(jobs) if k // EACH % waves == wave]
        steps += generate(model, batch, len(names), adapter_names=[names[j.place] for j in batch])
    return drawn(jobs, steps)


def plainly(model, jobs, rows):
    return drawn(jobs, [s for batch in chunks(jobs, rows) for s in generate(model, batch)])


def copied(model, jobs):
    assert len({(j.prefix, j.limit) for j in jobs}) == 1
    return drawn(jobs, generate(model, jobs[:1], copies=len(jobs)))


def drawn(jobs, steps):
    wanted = sum(j.limit for j in jobs)  # the first token of an answer comes from its prompt's pass
    computed = sum(s.tokens for s in steps if s.tokens == s.heads) + len(jobs)
    return Drawn(wanted, steps, wanted / computed)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


class Run(NamedTuple):
    cpu: float
    wall: float
    load: float  # cores that others used
    peak: float  # MiB above what was held before
    drawn: Drawn


def memory_now(name):
    """Resident memory of this process in MiB: VmRSS now, VmHWM the most since the last reset."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def busy():
    """CPU seconds of the whole machine so far: all but idle and waiting for disks."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def once(arm):
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    held, before = memory_now("VmRSS"), busy()
    wall, cpu = time.perf_counter(), time.process_time()
    result = arm()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Run(cpu, wall, max(0.0, busy() - before - cpu) / wall, memory_now("VmHWM") - held, result)


def alternating(arms, options):
    """Every arm `repeats` times, in turn: name -> runs."""
    runs = {name: [] for name in arms}
    for k in range(options.repeats):
        for name, arm in arms.items():
            torch.manual_seed(k)
            tries = [once(arm)]
            while tries[-1].load > options.max_load and len(tries) < 3:
                tries.append(once(arm))
            runs[name].append(min(tries, key=lambda r: r.load))
            r = runs[name][-1]
            print(f"    {name:<44} {r.cpu:7.1f} s CPU {r.wall:7.1f} s wall, others {r.load:.2f}", file=sys.stderr)
    return runs


def compare(bench, case, arms, pairs):
    """Run a case and add a line per pair (ours, baseline, wanted, ranks of the two)."""
    options = bench.options
    print(f"{case}", file=sys.stderr)
    runs = alternating(arms, options)
    walls = {}
    if options.threads > 1:
        torch.set_num_threads(options.threads)
        walls = {name: [r.wall for r in found] for name, found in alternating(arms, options).items()}
        torch.set_num_threads(1)
    for one, other, wanted, ranks in pairs:
        a, b = runs[one], runs[other]
        ratio = median(y.cpu / x.cpu for x, y in zip(a, b, strict=True))
        cpu, share, speed = [], [], []
        for found, rank in zip((a, b), ranks, strict=True):
            cpu.append(median(r.cpu for r in found))
            share.append(bench.machine.seconds(found[0].drawn.steps, rank) / cpu[-1])
            speed.append(found[0].drawn.tokens / cpu[-1])
        bench.lines.append(
            {"metric": "useful tokens per CPU second", "case": f"{case}: {one} against {other}", "unit": "tokens/s",
             "ours": round(speed[0], 1), "baseline": round(speed[1], 1), "ratio": round(ratio, 3), "target": wanted,
             "met": None if wanted is None else ratio >= wanted, "ratio_of_medians": round(cpu[1] / cpu[0], 3),
             "wall": round(median(r.wall for r in b) / median(r.wall for r in a), 3),
             "wall_threads": round(median(walls[other]) / median(walls[one]), 3) if walls else None,
             "bound": [round(s, 3) for s in share], "useful": [round(r[0].drawn.useful, 3) for r in (a, b)],
             "peak_mib": [round(max(r.peak for r in found)) for found in (a, b)], "cpu": [round(c, 2) for c in cpu],
             "load": round(max(r.load for r in (*a, *b)), 2), "others": any(r.load > options.max_load for r in (*a, *b))}
        )  # fmt: skip
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# The cases


class Bench:
    """Models, prompts and what was found."""

    def __init__(self, options):
        self.options, self.lines, self.notes = options, [], []
        self.path = resolve_model("smollm2-135m")
        self.chat = ChatFormat(load_tokenizer(self.path, ModelOptions()))
        self.prompts = [self.chat.prefix(p.messages) for p in load_prompts("v1").prompts]
        self.runs = {8: options.run8, 32: options.run32}
        self.plain = self.load(DTYPES[options.dtype])
        self.machine = Machine(Trunk(self.plain))

    def scaled(self, n, least):
        return max(least, round(n * self.options.scale))

    def load(self, dtype):
        model = load_model(self.path, dtype, torch.device("cpu"), ModelOptions())
        model.generation_config = GenerationConfig()  # its own would end answers early
        plainly(model, [Job(0, tuple(self.prompts[0]), -1, 0, 2)], 1)
        return model

    def with_adapters(self, rank):
        """A model of its own with all checkpoints of a run loaded by PEFT, their names, and our stack of them."""
        found = find_run(self.runs[rank]).checkpoints[: self.scaled(20, 3)]
        names, model = [c.label for c in found], self.load(DTYPES[self.options.dtype])
        how = {"is_trainable": False, "autocast_adapter_dtype": False}
        model = PeftModel.from_pretrained(model, str(checkpoint_path(found[0])), adapter_name=names[0], **how)
        for c in found[1:]:
            model.load_adapter(str(checkpoint_path(c)), adapter_name=c.label, **how)
        model.eval().to(DTYPES[self.options.dtype])
        adapters = [lora_factors(model, name) for name in names]
        start = time.process_time()
        stack = AdapterStack(adapters, DTYPES[self.options.dtype])
        self.notes.append(
            f"rank {rank}: {len(names)} checkpoints of {found[0].meta.get('rank')}, {stack.bytes / 2**20:.0f} MiB, "
            f"stacked in {time.process_time() - start:.2f} s CPU"
        )
        self.machine.rank_weights[rank] = sum(f.down.numel() + f.up.numel() for f in adapters[0].values())
        return model, names, stack

    def jobs(self, checkpoints, each):
        """Answers of median length 24: `each` of every checkpoint, each with a prompt of its own."""
        limits = lengths(checkpoints * each, self.scaled(24, 8), self.scaled(96, 32))
        return [
            Job(k, tuple(self.prompts[k % len(self.prompts)]), k // each, k, limit) for k, limit in enumerate(limits)
        ]


def checkpoints(bench):
    for rank in bench.options.ranks:
        model, names, stack = bench.with_adapters(rank)
        for waves in bench.options.waves:
            jobs = bench.jobs(len(names), EACH * waves)
            arms = {
                "ours": lambda m=model, s=stack, j=jobs, n=names: ours(m, s, j, EACH * len(n)),
                "PEFT set_adapter": lambda m=model, n=names, j=jobs: in_turn(m, n, j, merged=False),
                "PEFT merge_adapter": lambda m=model, n=names, j=jobs: in_turn(m, n, j, merged=True),
                "PEFT adapter_names": lambda m=model, n=names, j=jobs, w=waves: side_by_side(m, n, j, w),
            }
            wanted = {"PEFT set_adapter": 4, "PEFT merge_adapter": 1.5, "PEFT adapter_names": 2}
            case = f"{len(names)} checkpoints, {EACH} rows each, {EACH * waves} answers each, rank {rank}"
            compare(bench, case, arms, [("ours", name, w, (rank, rank)) for name, w in wanted.items()])


def adapters(bench):
    held = {rank: bench.with_adapters(rank) for rank in bench.options.ranks}
    n = min(len(names) for _, names, _ in held.values())
    for waves in bench.options.waves:
        jobs = bench.jobs(n, EACH * waves)
        base = [Job(j.index, j.prefix, -1, j.seed, j.limit) for j in jobs]
        arms = {"base": lambda b=base: ours(bench.plain, None, b, EACH * n)}
        for rank, (model, _, stack) in held.items():
            arms[f"rank {rank}"] = lambda m=model, s=stack, j=jobs: ours(m, s, j, EACH * n)
        # At most 15 % slower at rank 8; rank 32 is judged by the bound, below.
        pairs = [(f"rank {r}", "base", 1 / 1.15 if r == 8 else None, (r, None)) for r in held]
        case = f"ours, {EACH * n} rows, {EACH * waves} answers each"
        runs = compare(bench, case, arms, pairs)
        bound = {None: bench.machine.seconds(runs["base"][0].drawn.steps)}
        cpu = {None: median(r.cpu for r in runs["base"])}
        for rank in held:
            found = runs[f"rank {rank}"]
            bound[rank] = bench.machine.seconds(found[0].drawn.steps, rank)
            cpu[rank] = median(r.cpu for r in found)
            slower, least = cpu[rank] / cpu[None] - 1, bound[rank] / bound[None] - 1
            bench.notes.append(
                f"{case}, rank {rank}: {100 * slower:+.1f} % over the base, the byte-and-FLOP model says "
                f"{100 * least:+.1f} %; measured / model {cpu[rank] / bound[rank]:.2f} (base "
                f"{cpu[None] / bound[None]:.2f}; wanted at rank 32: at most 1.3)"
            )


def mixed(bench):
    n = bench.scaled(240, 24)
    limits = lengths(n, bench.scaled(40, 10), bench.scaled(200, 40))
    jobs = [Job(k, tuple(bench.prompts[k]), -1, k, limit) for k, limit in enumerate(limits)]
    reduced = bench.options.dtype != "float32"
    other = bench.load(torch.float32) if reduced else bench.plain
    arms = {
        "ours": lambda: ours(bench.plain, None, jobs, ROWS["cpu"]),
        "generate, batches of 8, float32": lambda: plainly(other, jobs, 8),
    }
    pairs = [("ours", name, 7 if reduced else 4, (None, None)) for name in list(arms)[1:]]
    compare(bench, f"one checkpoint, {n} prompts, mixed lengths", arms, pairs)


def long_prompt(bench, n, turn=0):
    texts = [p.messages[0].content for p in load_prompts("v1").prompts]
    text = " ".join(texts[turn:] + texts[:turn])[: n * 12]
    ids = bench.chat.prefix((Message("user", text),))
    assert len(ids) >= n
    return tuple(ids[:n])


def draws(bench):
    n, answer, prompt = bench.scaled(50, 10), bench.scaled(100, 20), bench.scaled(400, 100)
    prefix = long_prompt(bench, prompt)
    jobs = [Job(k, prefix, -1, k, answer) for k in range(n)]
    arms = {
        "ours": lambda: ours(bench.plain, None, jobs, ROWS["cpu"]),
        "generate, num_return_sequences": lambda: copied(bench.plain, jobs),
    }
    case = f"prompt of {prompt} tokens, answers of {answer}, n = {n}"
    compare(bench, case, arms, [("ours", "generate, num_return_sequences", 3, (None, None))])


def memory(bench):
    """Each in a process of its own: growth over the loaded model, with the bound and without."""
    options = bench.options
    for bound in (options.memory, 0):
        command = [sys.executable, __file__, options.run8, options.run32, "--inside", "--memory", str(bound)]
        command += ["--scale", str(options.scale), "--dtype", options.dtype]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        found = json.loads(out)
        if bound:
            kept = "kept" if found["growth"] <= bound * 1024 else "NOT KEPT"
            start = f"--memory {bound:g} ({bound * 1024:.0f} MiB), {kept}"
        else:
            start = "without a bound"
        bench.notes.append(
            f"memory, {start}: {found['growth']:.0f} MiB above the loaded model at the most, {found['rows']} of "
            f"{found['jobs']} rows in flight, {found['speed']:.0f} tokens per CPU second"
        )


def memory_inside(bench):
    n, prompt, answer = 32, 400, bench.scaled(48, 24)
    jobs = [Job(k, long_prompt(bench, prompt, 7 * k), -1, k, answer) for k in range(n)]
    trunk = Trunk(bench.plain)
    holder = SimpleNamespace(options=ModelOptions(memory=bench.options.memory or None))
    rows = Sessions(holder)._rows(trunk, jobs)
    ours(bench.plain, None, [Job(0, jobs[0].prefix, -1, 0, 2)], 1)
    found = once(lambda: ours(bench.plain, None, jobs, rows))
    counted = (rows * row_bytes(trunk, prompt, answer) + pass_bytes(trunk, prompt)) / 2**20
    speed = found.drawn.tokens / found.cpu
    print(json.dumps({"growth": found.peak, "rows": rows, "jobs": n, "speed": speed, "counted": counted}))


# ---------------------------------------------------------------------------------------------------------------------


def about(bench):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown")
    o, m = bench.options, bench.machine
    return [
        f"python benchmarks/sampler.py RUN8 RUN32 --cases {','.join(o.cases)} --repeats {o.repeats} --scale {o.scale:g} "
        f"--dtype {o.dtype} --threads {o.threads} at {commit}",
        f"torch {version('torch')}, transformers {version('transformers')}, peft {version('peft')}; {cpu}, "
        f"{os.cpu_count()} cores, 1 thread decides; load {' '.join(f'{x:.2f}' for x in os.getloadavg())}",
        f"{m.matmul / 1e9:.0f} GFLOP/s at 80 rows, {m.read / 1e9:.1f} GB/s read; a pass reads "
        f"{(m.layers + m.head) * m.itemsize / 2**20:.0f} MiB of weights and takes {2 * (m.layers + m.head) / 1e9:.3f} "
        f"GFLOP a row; lengths: log-normal, sigma {SIGMA}, seed {SEED}",
    ]


def show(bench):
    print(f"{'case':<100} {'tok/s':>6} {'base':>6} {'CPU':>6} {'medians':>7} {'wanted':>6} {'':<7} {'wall':>5} "
          f"{'threads':>7} {'of bound':>11} {'useful':>11} {'peak MiB':>10} {'load':>5}")  # fmt: skip
    for f in bench.lines:
        met = {None: "", True: "met", False: "NOT MET"}[f["met"]]
        wanted = "" if f["target"] is None else f"{f['target']:.2f}"
        threads = "" if f["wall_threads"] is None else f"{f['wall_threads']:.2f}x"
        print(f"{f['case']:<100} {f['ours']:>6.0f} {f['baseline']:>6.0f} {f['ratio']:>5.2f}x {f['ratio_of_medians']:>6.2f}x "
              f"{wanted:>6} {met:<7} {f['wall']:>4.2f}x {threads:>7} {f['bound'][0]:>5.2f}/{f['bound'][1]:>5.2f} "
              f"{f['useful'][0]:>5.2f}/{f['useful'][1]:>5.2f} {f['peak_mib'][0]:>5}/{f['peak_mib'][1]:>4} "
              f"{f['load']:>4.2f}{'*' if f['others'] else ''}")  # fmt: skip
    for note in bench.notes:
        print(note)


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run8")
    parser.add_argument("run32")
    parser.add_argument("--cases", type=lambda t: t.split(","), default=list(CASES))
    parser.add_argument("--ranks", type=numbers, default=[8, 32])
    parser.add_argument("--waves", type=numbers, default=[1, 3])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-load", type=float, default=1.0)
    parser.add_argument("--memory", type=float, default=0.5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    bench = Bench(options)
    if options.inside:
        memory_inside(bench)
        return
    for line in about(bench):
        print(line)
    for case in options.cases:
        {"checkpoints": checkpoints, "adapters": adapters, "mixed": mixed, "draws": draws, "memory": memory}[case](
            bench
        )
        gc.collect()
    show(bench)
    print(f"load at the end {' '.join(f'{x:.2f}' for x in os.getloadavg())}")
    if options.json:
        Path(options.json).write_text(json.dumps({"about": about(bench), "rows": bench.lines, "notes": bench.notes}))


if __name__ == "__main__":
    main()
