"""How fast answers of many checkpoints are drawn: ours against what transformers and PEFT offer.

    python benchmarks/sampler.py RUN8 RUN32 [--cases checkpoints,adapters,mixed,draws,memory,equality,profile]
        [--ranks 8,32] [--waves 1,3] [--repeats 5] [--scale 1.0] [--dtype float32] [--threads 1] [--max-load 1.0]
        [--memory 0.5]

RUN8 and RUN32 are folders of adapter checkpoints of smollm2-135m, as `truing train` leaves them. Ours and each baseline
alternate in one process with the same model, number type, prompts, lengths and sampling parameters (temperature 1,
top_p 1). Answer lengths are one log-normal list (sigma 0.6, seed 5, capped); only tokens within them count. A row of
ours ends at its length, a batch of `generate` runs until its longest row ends. Adapters and the base are compared pass
by pass, in turn. Loading adapters and stacking them, done once, is in no figure. Ratios of CPU seconds on one thread
decide; `--threads 2` adds a second pass, for wall time. An arm during which others used more than `--max-load` cores is
repeated, twice at most; the quietest is kept, and marked with * if it is above.

The bound beside each figure adds up, over its own passes, max(bytes / read rate, FLOPs / matmul rate) of the layers,
the head, the adapters, and the keys and values. Both rates are measured at the start and after every case; the best so
far counts.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from peft import PeftModel
from sampler_arms import (
    EACH,
    SEED,
    SIGMA,
    Machine,
    alternating,
    by_peft,
    chunks,
    generate,
    in_turn,
    lengths,
    once,
    ours,
    sampled,
)
from transformers import GenerationConfig

from truing.config import ModelConfig
from truing.data.prompts import load_prompts
from truing.models.chat import ChatFormat
from truing.models.checkpoints import checkpoint_path, find_run
from truing.models.download import resolve_model
from truing.models.engine.batching import Job, Sampler
from truing.models.engine.lora import AdapterStack, lora_factors
from truing.models.engine.runner import Trunk
from truing.models.engine.sessions import ROWS, Sessions
from truing.models.loading import load_model, load_tokenizer
from truing.types.records import Message, SamplingParams

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def compare(bench, case, groups, pairs, way=alternating):
    """Run a case and note a line per pair: ours, baseline, ratio wanted, ranks of the two."""
    options, walls = bench.options, {}
    print(case, file=sys.stderr)
    runs = way(groups, options)
    if options.threads > 1:
        torch.set_num_threads(options.threads)
        walls = {name: median(r.wall for r in found) for name, found in alternating(groups, options).items()}
        torch.set_num_threads(1)
    bench.machine.measure()
    for one, other, wanted, ranks in pairs:
        both = runs[one], runs[other]
        ratio = median(y.cpu / x.cpu for x, y in zip(*both, strict=True))
        cpu = [median(r.cpu for r in found) for found in both]
        wall = [median(r.wall for r in found) for found in both]
        bound = [bench.machine.seconds(found[0].sampled.steps, k) for found, k in zip(both, ranks, strict=True)]
        speed = [round(found[0].sampled.tokens / c, 1) for found, c in zip(both, cpu, strict=True)]
        load = max(r.load for found in both for r in found)
        peaks = [max((r.peak for r in found if r.peak is not None), default=None) for found in both]
        bench.lines.append({
            "metric": "useful tokens per CPU second", "case": case, "arms": [one, other], "unit": "tokens/s",
            "ours": speed[0], "baseline": speed[1], "ratio": round(ratio, 3), "target": wanted,
            "met": None if wanted is None else ratio >= wanted, "medians": round(cpu[1] / cpu[0], 3), "cpu_s": cpu,
            "wall": round(wall[1] / wall[0], 3), "threads": round(walls[other] / walls[one], 3) if walls else None,
            "wall_s": wall, "bound_s": bound, "useful": [found[0].sampled.useful for found in both],
            "peak_mib": peaks, "load": load, "quiet": load <= options.max_load,
        })  # fmt: skip
    return runs


class Bench:
    """Models, prompts and what was found."""

    def __init__(self, options):
        self.options, self.lines, self.notes = options, [], []
        self.path, self.dtype = resolve_model("smollm2-135m"), DTYPES[options.dtype]
        self.chat = ChatFormat(load_tokenizer(self.path, ModelConfig()))
        self.texts = [p.messages for p in load_prompts("v1").prompts]
        self.prompts = [tuple(self.chat.prefix(messages)) for messages in self.texts]
        self.plain = self.load(self.dtype)
        self.machine = Machine(Trunk(self.plain))

    def scaled(self, n, least):
        return max(least, round(n * self.options.scale))

    def waves(self):
        return [min(w, 2) if self.options.scale < 0.5 else w for w in self.options.waves]

    def load(self, dtype):
        model = load_model(self.path, dtype, torch.device("cpu"), ModelConfig())
        model.generation_config = GenerationConfig()  # its own would end answers early
        generate(model, [Job(0, self.prompts[0], -1, 0, 2)])
        return model

    def with_adapters(self, rank):
        """A model of its own with all checkpoints of a run loaded by PEFT, their names, and our stack of them."""
        found = find_run({8: self.options.run8, 32: self.options.run32}[rank]).checkpoints[: self.scaled(20, 2)]
        names, model = [c.label for c in found], self.load(self.dtype)
        how = {"is_trainable": False, "autocast_adapter_dtype": False}
        model = PeftModel.from_pretrained(model, str(checkpoint_path(found[0])), adapter_name=names[0], **how)
        for c in found[1:]:
            model.load_adapter(str(checkpoint_path(c)), adapter_name=c.label, **how)
        model.eval().to(self.dtype)
        factors, start = [lora_factors(model, name) for name in names], time.process_time()
        stack = AdapterStack(factors, self.dtype)
        spent = time.process_time() - start
        ranks = sorted({c.meta["rank"] for c in found})
        self.notes.append(
            f"{len(names)} adapters of rank {ranks}: {stack.bytes / 2**20:.0f} MiB, {spent:.2f} s CPU to stack"
        )
        self.machine.factors[rank] = sum(f.down.numel() + f.up.numel() for f in factors[0].values())
        return model, names, stack

    def jobs(self, checkpoints, each):
        """`each` answers of every checkpoint, of median length 24, each with a prompt of its own."""
        limits = lengths(checkpoints * each, self.scaled(24, 4), self.scaled(96, 12))
        return [Job(k, self.prompts[k % len(self.prompts)], k // each, k, n) for k, n in enumerate(limits)]

    def long_prompt(self, n, turn=0):
        text = " ".join(m.content for messages in self.texts[turn : turn + 60] for m in messages)
        ids = self.chat.prefix((Message("user", text),))
        assert len(ids) >= n
        return tuple(ids[:n])


def checkpoints(bench):
    wanted = {"set_adapter": 4, "merge_adapter": 1.5, "adapter_names": 2}
    for rank in bench.options.ranks:
        model, names, stack = bench.with_adapters(rank)
        for waves in bench.waves():
            jobs = bench.jobs(len(names), EACH * waves)
            groups = {"ours": lambda m=model, s=stack, j=jobs: ours(m, s, j, EACH * (j[-1].place + 1))}
            for way in wanted:
                groups[f"PEFT {way}"] = lambda w=way, m=model, n=names, j=jobs, k=waves: by_peft(w, m, n, j, k)
            case = f"{len(names)} checkpoints, {EACH} rows each, {EACH * waves} answers each, rank {rank}"
            compare(bench, case, groups, [("ours", f"PEFT {way}", w, (rank, rank)) for way, w in wanted.items()])


def adapters(bench):
    with_rank = {rank: bench.with_adapters(rank) for rank in bench.options.ranks}
    n = min(len(names) for _, names, _ in with_rank.values())
    for waves in bench.waves():
        jobs = bench.jobs(n, EACH * waves)
        base = [Job(j.index, j.prefix, -1, j.seed, j.limit) for j in jobs]
        groups = {"base": lambda say=None, b=base: ours(bench.plain, None, b, EACH * n, say=say)}
        for rank, (model, _, stack) in with_rank.items():
            groups[f"rank {rank}"] = lambda say=None, m=model, s=stack, j=jobs: ours(m, s, j, EACH * n, say=say)
        # At most 15 % slower at rank 8; rank 32 is judged by the byte-and-FLOP model, below.
        pairs = [(f"rank {r}", "base", 1 / 1.15 if r == 8 else None, (r, None)) for r in with_rank]
        case = f"ours, {EACH * n} rows, {EACH * waves} answers each, with adapters and without"
        runs = compare(bench, case, groups, pairs, in_turn)
        floor, base_cpu = bench.machine.seconds(runs["base"][0].sampled.steps), median(r.cpu for r in runs["base"])
        for group, _, _, (rank, _) in pairs:
            bound, cpu = bench.machine.seconds(runs[group][0].sampled.steps, rank), median(r.cpu for r in runs[group])
            each = [x.cpu / y.cpu for x, y in zip(runs[group], runs["base"], strict=True)]
            slower, told = median(each), ", ".join(f"{100 * r - 100:+.1f}" for r in each)
            bench.notes.append(
                f"{EACH * waves} answers each, {group}: {100 * slower - 100:+.1f} % over the base ({told}), by the "
                f"byte-and-FLOP model {100 * bound / floor - 100:+.1f} %; seconds over the model's {cpu / bound:.2f} "
                f"(base {base_cpu / floor:.2f}), slowdown over the model's {slower / bound * floor:.2f}; "
                "wanted, rank 32: 1.3"
            )


def mixed(bench):
    n, reduced = bench.scaled(240, 16), bench.dtype is not torch.float32
    limits = lengths(n, bench.scaled(40, 6), bench.scaled(200, 24))
    jobs = [Job(k, bench.prompts[k], -1, k, limit) for k, limit in enumerate(limits)]
    model, name = bench.load(torch.float32) if reduced else bench.plain, "generate by 8, float32"
    one_base(bench, f"one checkpoint, {n} prompts", jobs, name, 7 if reduced else 4, lambda: [
        step for batch in chunks(jobs, 8) for step in generate(model, batch)
    ])  # fmt: skip


def samples(bench):
    n, answer, prompt = bench.scaled(50, 10), bench.scaled(100, 10), bench.scaled(400, 100)
    jobs, name = [Job(k, bench.long_prompt(prompt), -1, k, answer) for k in range(n)], "num_return_sequences"
    case = f"prompt of {prompt} tokens, answers of {answer}, n = {n}"
    one_base(bench, case, jobs, name, 3, lambda: generate(bench.plain, jobs[:1], copies=n))


def one_base(bench, case, jobs, name, wanted, steps):
    rows = min(ROWS["cpu"], len(jobs))
    groups = {"ours": lambda: ours(bench.plain, None, jobs, rows), name: lambda: sampled(jobs, steps())}
    compare(bench, case, groups, [("ours", name, wanted, (None, None))])


def memory(bench):
    """Growth over the loaded model with the bound and without, each in a process of its own."""
    o = bench.options
    if o.inside:
        n, answer = bench.scaled(32, 12), bench.scaled(64, 16)
        bound = o.memory or None
        jobs, trunk = [Job(k, bench.long_prompt(400, 7 * k % 180), -1, k, answer) for k in range(n)], Trunk(bench.plain)
        rows = Sessions(SimpleNamespace(options=ModelConfig(memory=bound)))._rows(trunk, jobs)
        r = once(lambda: ours(bench.plain, None, jobs, rows, frugal=bound is not None))
        limit = (
            "no bound"
            if bound is None
            else f"bound {bound * 1024:.0f} MiB {'' if r.peak <= bound * 1024 else 'NOT '}kept"
        )
        print(f"memory, {limit}: {r.peak:.0f} MiB over the loaded model at the most; {rows} of {n} rows in flight, "
              f"prompts of 400, {r.sampled.tokens / r.cpu:.0f} tokens per CPU second")  # fmt: skip
        return
    for bound in (o.memory, 0):
        command = [sys.executable, __file__, o.run8, o.run32, "--cases", "memory", "--inside", "--memory", str(bound)]
        command += ["--scale", str(o.scale), "--dtype", o.dtype]
        bench.notes += subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def equality(bench):
    """Greedy answers of the base and all checkpoints side by side against PEFT's, one by one."""
    for rank in bench.options.ranks:
        model, names, stack = bench.with_adapters(rank)
        places, limit, gaps = range(-1, len(names)), bench.scaled(24, 4), []
        jobs = [Job(k, bench.prompts[(k + k // 2) % 24], places[k // 2], 0, limit) for k in range(2 * len(places))]
        model.base_model.disable_adapter_layers()
        sampler = Sampler(Trunk(model), stack, SamplingParams(temperature=0.0), stop_ids=(), rows=len(jobs))
        found = {d.index: d.tokens for d in sampler.run(jobs)}
        for job in jobs:
            if job.place >= 0:
                model.base_model.enable_adapter_layers()
                model.set_adapter(names[job.place])
            ids, start = torch.tensor([job.prefix]), len(job.prefix)
            config = GenerationConfig(do_sample=False, min_new_tokens=limit, max_new_tokens=limit, pad_token_id=0)
            with torch.inference_mode():
                own = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
                both = enumerate(zip(own[0, start:].tolist(), found[job.index], strict=True))
                first = next((k for k, (a, b) in both if a != b), None)
                if first is not None:
                    top = model(own[:, : start + first]).logits[0, -1].topk(2).values
                    gaps.append(float(top[0] - top[1]))
        texts, told = len({tuple(found[j.index]) for j in jobs}), ", ".join(f"{g:.1e}" for g in gaps) or "none"
        bench.notes.append(
            f"rank {rank}: {len(jobs) - len(gaps)} of {len(jobs)} greedy answers of {limit} tokens ({texts} texts) are "
            f"PEFT's; gaps of its two best where the others first differ: {told}"
        )
        assert all(g < 1e-4 for g in gaps), bench.notes[-1]


def profile(bench):
    """Which operations six passes (of 80 answers, the 21st to 26th) spend their time on, in milliseconds a pass."""
    start = bench.scaled(20, 3)
    with_rank = {f"rank {rank}": bench.with_adapters(rank) for rank in bench.options.ranks}
    jobs, found = bench.jobs(min(len(names) for _, names, _ in with_rank.values()), EACH), {}
    for group in ("base", *with_rank):
        model, _, stack = with_rank.get(group, (bench.plain, None, None))
        own = jobs if stack else [Job(j.index, j.prefix, -1, j.seed, j.limit) for j in jobs]
        if stack is not None:
            model.base_model.disable_adapter_layers()
        watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

        def say(work, watch=watch):
            if work.passes in (start, start + 6):
                watch.start() if work.passes == start else watch.stop()

        params = SamplingParams(temperature=1.0, top_p=1.0)
        sampler = Sampler(Trunk(model), stack, params, stop_ids=(), rows=len(jobs), say=say)
        next(d for d in sampler.run(own) if sampler.work.passes > start + 6)
        found[group] = {e.key: (e.self_cpu_time_total / 6e3, e.count // 6) for e in watch.key_averages()}
    names = sorted(set().union(*found.values()), key=lambda n: -max(t.get(n, (0, 0))[0] for t in found.values()))
    bench.notes.append(f"passes {start + 1} to {start + 6}, ms and calls a pass: {', '.join(found)}")
    for name in names[:14]:
        told = (found[group].get(name, (0, 0)) for group in found)
        bench.notes.append(f"    {name.removeprefix('aten::'):<28}" + "".join(f"{ms:9.1f} {n:>5}" for ms, n in told))
    total = "".join(
        f"{sum(ms for ms, _ in t.values()):9.1f} {sum(n for _, n in t.values()):>5}" for t in found.values()
    )
    bench.notes.append(f"    {'all':<28}{total}")


CASES = {
    "checkpoints": checkpoints, "adapters": adapters, "mixed": mixed, "samples": samples, "memory": memory,
    "equality": equality, "profile": profile,
}  # fmt: skip


def about(bench):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    info = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    m, libraries = bench.machine, ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    kv = 2 * m.trunk.depth * m.trunk.kv_heads * m.trunk.head_size * m.itemsize
    return (
        f"python benchmarks/sampler.py {' '.join(sys.argv[1:])} at {commit}\n{libraries}; {len(info)} cores"
        f"{info[0].split(':')[1] if info else ''}, one thread decides; load {os.getloadavg()[0]:.2f}; medians of "
        f"{bench.options.repeats}; {bench.options.dtype}; lengths log-normal, sigma {SIGMA}, seed {SEED}\n"
        f"{m.matmul / 1e9:.0f} GFLOP/s at 80 rows, {m.read / 1e9:.1f} GB/s; a pass reads "
        f"{(m.layers + m.head) * m.itemsize / 2**20:.0f} MiB of weights; a row takes {(m.layers + m.head) / 5e8:.2f} "
        f"GFLOP and {kv / 1024:.0f} KiB for every token it reads"
    )


def show(bench):
    print(f"{'':<34}{'tok/s':>11}{'CPU ratio':>11}{'medians':>9}{'wanted':>15}{'wall':>7}{'threads':>9}"
          f"{'of bound':>12}{'useful':>12}{'peak MiB':>13}{'load':>7}")  # fmt: skip
    for case, lines in groupby(bench.lines, key=lambda f: f["case"]):
        print(case)
        for f in lines:
            wanted = "" if f["target"] is None else f"{f['target']:.2f} {'met' if f['met'] else 'NOT MET'}"
            share = [least / took for least, took in zip(f["bound_s"], f["cpu_s"], strict=True)]
            (u, v), (p, q) = f["useful"], ("-" if p is None else f"{p:.0f}" for p in f["peak_mib"])
            line = f"  {' / '.join(f['groups']):<32}{f['ours']:>5.0f} /{f['baseline']:>4.0f}{f['ratio']:>10.2f}x"
            line += f"{f['medians']:>8.2f}x{wanted:>15}{f['wall']:>6.2f}x{f['threads'] or '-':>9}{share[0]:>6.2f} /"
            line += f"{share[1]:>4.2f}{u:>6.2f} /{v:>4.2f}{p:>6} /{q:>5}{f['load']:>6.2f}"
            print(line + "*" * (not f["quiet"]))
    print("\n".join(bench.notes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run8")
    parser.add_argument("run32")
    for name, default in {"cases": ",".join(CASES), "ranks": "8,32", "waves": "1,3", "json": ""}.items():
        parser.add_argument(f"--{name}", default=default)
    for name, default in {"repeats": 5, "threads": 1, "scale": 1.0, "max-load": 1.0, "memory": 0.5}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.ranks, options.waves = ([int(n) for n in text.split(",")] for text in (options.ranks, options.waves))
    cases = options.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    bench = Bench(options)
    if not options.inside:
        print(about(bench), flush=True)
    for case in cases:
        CASES[case](bench)
        gc.collect()
    if options.inside:
        return
    show(bench)
    rates = f"{bench.machine.matmul / 1e9:.0f} GFLOP/s and {bench.machine.read / 1e9:.1f} GB/s at the best"
    print(f"at the end: load {os.getloadavg()[0]:.2f}, {rates}")
    if options.json:
        Path(options.json).write_text(json.dumps({"about": about(bench), "rows": bench.lines, "notes": bench.notes}))


if __name__ == "__main__":
    main()
