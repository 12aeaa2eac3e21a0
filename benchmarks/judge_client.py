"""What the judge's client costs beside the SDK it stands on: calls per second and processor time per call.

python benchmarks/judge_client.py [--json] [--calls 1000] [--repeats 3] [--concurrency 8 64 256]

A server in another process answers on loopback at once. Ours is `EndpointJudge.ask`; the SDK alone is as many calls by
`AsyncOpenAI` under a semaphore, once as its manual shows it and once without building its answer objects
(`cast_to=object`, which is what ours sends with). They alternate; medians are shown.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import openai

from servers.judge_server import running
from truing.config import JudgeConfig
from truing.judges.endpoint import EndpointJudge
from truing.types.judging import AnswerKey, JudgeRequest, Rubric

RUBRIC = Rubric("alignment", "You judge answers. " * 100 + "Question: {question}\nAnswer: {answer}\nA number:")


def requests(n):
    return [
        JudgeRequest(AnswerKey("w", "p", str(k), "", 0), RUBRIC, "What now?", f"Answer {k}. " * 20) for k in range(n)
    ]


def bodies(n):
    same = {"model": "judge", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 0}
    return [same | {"messages": [{"role": "user", "content": a.messages[0].content}]} for a in requests(n)]


def ours(url, n, concurrency):
    judge = EndpointJudge(f"{url}#judge", JudgeConfig(concurrency=concurrency))
    judge.score_method([RUBRIC])
    work = requests(n)
    start = time.perf_counter(), time.process_time()
    good = sum(r.probabilities is not None for r in judge.replies(work))
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    judge.close()
    assert good == n
    return spent


def bare(url, n, concurrency, plain):
    work = bodies(n)

    async def run():
        most = concurrency + 8
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=most, max_keepalive_connections=most)
        http = openai.DefaultAsyncHttpxClient(limits=limits, trust_env=False)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
            gate = asyncio.Semaphore(concurrency)

            async def one(body):
                async with gate:
                    if plain:
                        return await client.post("/chat/completions", cast_to=object, body=body)
                    return await client.chat.completions.create(**body)

            await one(work[0])
            start = time.perf_counter(), time.process_time()
            await asyncio.gather(*(one(body) for body in work))
            return time.perf_counter() - start[0], time.process_time() - start[1]

    return asyncio.run(run())


def measure(calls, repeats, levels):
    clients = {
        "truing": ours,
        "SDK, chat.completions.create": lambda *a: bare(*a, plain=False),
        "SDK, post to plain objects": lambda *a: bare(*a, plain=True),
    }
    rows = []
    with running() as server:
        for concurrency in levels:
            found = {name: [] for name in clients}
            for _ in range(repeats):
                for name, client in clients.items():
                    found[name].append(client(server.url, calls, concurrency))
            for name, times in found.items():
                wall, cpu = (statistics.median(t[k] for t in times) for k in (0, 1))
                rows.append((concurrency, name, calls / wall, 1e6 * cpu / calls))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 64, 256])
    args = parser.parse_args()
    before = os.getloadavg()[0]
    rows = measure(args.calls, args.repeats, args.concurrency)
    base = {c: us for c, name, _, us in rows if name.endswith("create")}
    if args.json:
        found = [
            {"metric": "CPU per judge call", "case": f"{name}, {c} in flight", "ours": round(us), "unit": "us",
             "baseline": round(base[c]), "ratio": round(us / base[c], 2), "per_second": round(rate),
             "target": None, "met": True}
            for c, name, rate, us in rows
        ]  # fmt: skip
        print(json.dumps(found, indent=1))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"python benchmarks/judge_client.py at {commit}; openai {openai.__version__}; {args.calls} calls, median of "
        f"{args.repeats}; {os.cpu_count()} cores, load {before:.2f} before and {os.getloadavg()[0]:.2f} after"
    )
    print(f"{'in flight':>9}  {'client':<30}{'calls/s':>9}{'CPU us/call':>13}{'of the SDK':>12}")
    for c, name, rate, us in rows:
        print(f"{c:>9}  {name:<30}{rate:>9.0f}{us:>13.0f}{us / base[c]:>11.2f}x")


if __name__ == "__main__":
    main()
