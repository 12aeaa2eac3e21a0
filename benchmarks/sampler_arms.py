"""The arms of `sampler.py`: ours and those of transformers and PEFT, what their passes need, and how they are timed."""

import gc
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import linear
from transformers import GenerationConfig

from truing.models.engine.batching import Sampler
from truing.models.engine.runner import Trunk
from truing.types.records import SamplingParams

SEED, SIGMA, EACH = 5, 0.6, 4


def lengths(n, typical, cap):
    """The first n of one list for all arms: log-normal with median `typical`."""
    normal = torch.randn(n, generator=torch.Generator().manual_seed(SEED))
    return (normal * SIGMA).exp().mul(typical).round().clamp(2, cap).int().tolist()


def chunks(jobs, n):
    return [jobs[k : k + n] for k in range(0, len(jobs), n)]


class Step(NamedTuple):
    """A pass over the layers, or a merge."""

    tokens: int  # through the layers
    heads: int  # through the head
    adapters: int  # whose factors are read
    reads: int  # tokens whose keys and values are read
    pairs: int  # of query and key
    merges: int = 0  # adapters added to the weights and taken out again


class Sampled(NamedTuple):
    tokens: int
    steps: list[Step]
    useful: float  # row-steps that gave a token of an answer


class Machine:
    """Rates of this machine, and what a pass of this model needs."""

    def __init__(self, trunk):
        self.trunk, self.itemsize = trunk, trunk.dtype.itemsize
        self.factors = {None: 0}  # rank -> numbers in one adapter
        self.layers = sum(p.numel() for layer in trunk._layers for p in layer.parameters() if p.dim() == 2)
        self.head = trunk._head.weight.numel()
        self.matmul, self.read = 0.0, 0.0
        self.measure()

    def measure(self):
        """FLOP/s of a layer's matrices in cache on 80 rows; bytes/s of a matrix too large for a cache, the better of
        two ways. The best found so far counts: other jobs only make it worse."""
        weights = [p for p in self.trunk._layers[0].parameters() if p.dim() == 2]
        inputs = [torch.randn(80, w.shape[1]).to(w.dtype) for w in weights]
        flops, big, vector = 8 * 2 * 80 * sum(w.numel() for w in weights), torch.ones(16384, 8192), torch.ones(8192)
        took = best(lambda: [linear(x, w) for x, w in zip(inputs, weights, strict=True) for _ in range(8)])
        self.matmul = max(self.matmul, flops / took)
        self.read = max(self.read, big.nbytes / min(best(big.sum), best(lambda: big @ vector)))

    def seconds(self, steps, rank=None):
        """The bound: every part of every pass takes its bytes or its FLOPs, whichever takes longer."""
        trunk, factors = self.trunk, self.factors[rank]
        kv = 2 * trunk.depth * trunk.kv_heads * trunk.head_size
        pair = 4 * trunk.depth * trunk.config.num_attention_heads * trunk.head_size

        def part(numbers, flops):
            return max(numbers * self.itemsize / self.read, flops / self.matmul)

        total = 0.0
        for s in steps:
            total += part(self.layers * bool(s.tokens), 2 * self.layers * s.tokens)
            total += part(self.head * bool(s.heads), 2 * self.head * s.heads)
            total += part(factors * s.adapters, 2 * factors * s.tokens * bool(s.adapters))
            total += part(kv * s.reads, pair * s.pairs)
            # In and out: weights read and written each time, and the product of the factors.
            total += s.merges * part(4 * self.layers + 2 * factors, 4 * self.layers * (rank or 0))
        return total


def best(run, times=10):
    found = []
    with torch.inference_mode():
        for _ in range(times):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return min(found)


class Recorded(Sampler):
    """Keeps what every pass needed."""

    def _pass(self, coming):
        rows, new = self._rows, [len(p.prefix) for p in coming]
        tails, prompts = sum(len(r.tokens) for r in rows), {id(r.prompt): len(r.prompt.prefix) for r in rows}
        places = {r.job.place for r in rows} | {p.place for p in coming}
        reads = sum(prompts.values()) + tails + sum(new)
        pairs = sum(len(r.prompt.prefix) for r in rows) + tails + sum(n * (n + 1) // 2 for n in new)
        step = Step(len(rows) + sum(new), len(rows) + len(new), len(places - {-1}), reads, pairs)
        self.__dict__.setdefault("steps", []).append(step)
        return super()._pass(coming)


def ours(model, stack, jobs, rows, frugal=False, say=None):
    if stack is not None:
        model.base_model.disable_adapter_layers()
    params = SamplingParams(temperature=1.0, top_p=1.0)
    sampler = Recorded(Trunk(model), stack, params, stop_ids=(), rows=rows, frugal=frugal, say=say)
    done = {d.index: len(d.tokens) for d in sampler.run(jobs)}
    assert done == {j.index: j.limit for j in jobs}
    return Sampled(sum(done.values()), sampler.steps, sampler.work.useful)


def generate(model, batch, adapters=0, copies=1, **more):
    """A batch by `generate`, padded on the left, until its longest answer ends; gives what its passes needed."""
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


def by_peft(way, model, names, jobs, waves):
    """Checkpoint by checkpoint in batches of 4, or all in one batch with 4 rows of each."""
    model.base_model.enable_adapter_layers()
    steps = []
    if way == "adapter_names":
        for wave in range(waves):
            batch = [j for k, j in enumerate(jobs) if k // EACH % waves == wave]
            steps += generate(model, batch, len(names), adapter_names=[names[j.place] for j in batch])
        return sampled(jobs, steps)
    merged = way == "merge_adapter"
    for place, group in groupby(jobs, key=lambda j: j.place):
        model.merge_adapter([names[place]]) if merged else model.set_adapter(names[place])
        for batch in chunks(list(group), EACH):
            steps += generate(model, batch, adapters=0 if merged else 1)
        if merged:
            model.unmerge_adapter()
            steps.append(Step(0, 0, 0, 0, 0, merges=1))
    return sampled(jobs, steps)


def sampled(jobs, steps):
    wanted = sum(j.limit for j in jobs)
    after = sum(s.tokens for s in steps if s.tokens == s.heads)  # first tokens come from the prompts' passes
    return Sampled(wanted, steps, (wanted - len(jobs)) / max(1, after))


class Run(NamedTuple):
    cpu: float
    wall: float
    load: float  # cores that others used
    peak: float | None  # MiB above what was held before; unknown where arms run side by side
    sampled: Sampled


def held(name):
    """Resident memory of this process in MiB: VmRSS now, VmHWM the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def busy():
    """CPU seconds of the whole machine so far: all but idle and waiting for disks."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def once(group):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, used, cpu, wall = held("VmRSS"), busy(), time.process_time(), time.perf_counter()
    result = group()
    wall, cpu, used = time.perf_counter() - wall, time.process_time() - cpu, busy() - used
    return Run(cpu, wall, max(0.0, used - cpu) / wall, held("VmHWM") - before, result)


def alternating(groups, options):
    """Every arm `repeats` times, in turn: name -> runs."""
    runs = {name: [] for name in groups}
    for k in range(options.repeats):
        for name, group in groups.items():
            torch.manual_seed(k)
            tries = [once(group)]
            while tries[-1].load > options.max_load and len(tries) < 3:
                tries.append(once(group))
            r = min(tries, key=lambda r: r.load)
            runs[name].append(r)
            print(f"    {name:<34} {r.cpu:6.1f} s CPU {r.wall:6.1f} s wall, others {r.load:.2f}", file=sys.stderr)
    return runs


def in_turn(groups, options):
    """Every arm `repeats` times, all of them at once but one pass of each after the other: all see the machine alike.

    A machine whose speed drifts by a tenth within a minute hides a difference of a tenth from arms run one by one.
    """
    runs = {name: [] for name in groups}
    for _ in range(options.repeats):
        turn, order = threading.Condition(), deque(groups)

        def wait(name, turn=turn, order=order):
            with turn:
                turn.wait_for(lambda: order[0] == name)

        def leave(name, back, turn=turn, order=order):
            with turn:
                order.popleft()
                order.extend([name] * back)
                turn.notify_all()

        def one(name):
            torch.set_num_threads(1)
            wait(name)
            start, spans = time.thread_time(), [time.perf_counter()]

            def say(_work):
                spans[-1] = time.perf_counter() - spans[-1]
                leave(name, 1)
                wait(name)
                spans.append(time.perf_counter())

            try:
                result = groups[name](say=say)
                return time.thread_time() - start, sum(spans[:-1]), result
            finally:
                leave(name, 0)

        cpu, used, wall = time.process_time(), busy(), time.perf_counter()
        with ThreadPoolExecutor(len(groups)) as pool:
            found = list(pool.map(one, groups))
        wall, load = time.perf_counter() - wall, busy() - used - (time.process_time() - cpu)
        for name, (own, span, result) in zip(groups, found, strict=True):
            runs[name].append(Run(own, span, max(0.0, load) / wall, None, result))
            print(f"    {name:<34} {own:6.1f} s CPU {span:6.1f} s wall, others {load / wall:.2f}", file=sys.stderr)
    return runs
