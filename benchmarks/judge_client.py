"""What the judge's client costs beside the SDK it stands on: processor time per call, and calls per second.

python benchmarks/judge_client.py [--json FILE] [--calls 500] [--repeats 3] [--concurrency 8 64]

A server in another process answers on loopback at once. Ours is `EndpointJudge.ask`; the SDK alone is as many calls of
`chat.completions.create` under a semaphore. They alternate; medians are compared.
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
from truing.judges.endpoint import EndpointJudge
from truing.models.limits import Limits
from truing.types.judging import AnswerKey, JudgeRequest, Rubric

TARGET = 1.2
"""processor time of ours to that of the SDK, at most"""
RUBRIC = Rubric("alignment", "You judge answers. " * 100 + "Question: {question}\nAnswer: {answer}\nA number:")


def requests(n):
    return [
        JudgeRequest(AnswerKey("w", "p", str(k), "", 0), RUBRIC, "What now?", f"Answer {k}. " * 20) for k in range(n)
    ]


def bodies(n):
    same = {"model": "judge", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 0}
    return [same | {"messages": [{"role": "user", "content": a.messages[0].content}]} for a in requests(n)]


def ours(url, n, concurrency):
    judge = EndpointJudge(f"{url}#judge", Limits(concurrency=concurrency))
    judge.score_method([RUBRIC])
    work = requests(n)
    start = time.perf_counter(), time.process_time()
    good = sum(r.probabilities is not None for r in judge.replies(work))
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    judge.close()
    assert good == n
    return spent


def bare(url, n, concurrency):
    work = bodies(n)

    async def run():
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
            gate = asyncio.Semaphore(concurrency)

            async def one(body):
                async with gate:
                    return await client.chat.completions.create(**body)

            await one(work[0])
            start = time.perf_counter(), time.process_time()
            await asyncio.gather(*(one(body) for body in work))
            return time.perf_counter() - start[0], time.process_time() - start[1]

    return asyncio.run(run())


def measure(calls, repeats, levels):
    """(in flight, seconds of processor per call of ours and of the SDK, calls per second of both) for each level."""
    found = []
    with running() as server:
        for concurrency in levels:
            times = [[client(server.url, calls, concurrency) for client in (ours, bare)] for _ in range(repeats)]
            wall, cpu = ([statistics.median(t[who][k] for t in times) for who in (0, 1)] for k in (0, 1))
            found.append((concurrency, [c / calls for c in cpu], [calls / w for w in wall]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 64])
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    before = os.getloadavg()[0]
    rows = []
    print(f"{'in flight':>9}{'us/call':>9}{'of the SDK':>12}{'ratio':>7}{'calls/s':>9}{'of the SDK':>12}")
    for level, cpu, rate in measure(args.calls, args.repeats, args.concurrency):
        ratio = round(cpu[0] / cpu[1], 2)
        case = f"EndpointJudge to the SDK alone, {level} in flight"
        rows.append({"metric": "processor time per call", "case": case, "ratio": ratio, "target": TARGET})
        rows[-1]["met"] = ratio <= TARGET
        print(f"{level:>9}{1e6 * cpu[0]:>9.0f}{1e6 * cpu[1]:>12.0f}{ratio:>6.2f}x{rate[0]:>9.0f}{rate[1]:>12.0f}")
    print(
        f"{commit}; openai {openai.__version__}; {args.calls} calls, median of {args.repeats}; {os.cpu_count()} cores, "
        f"load {before:.2f} before and {os.getloadavg()[0]:.2f} after"
    )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
