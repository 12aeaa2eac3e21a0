"""What the judge's client costs beside the SDK it stands on: processor time per call, and calls per second.

    python benchmarks/judge_client.py [--json FILE] [--calls 500] [--repeats 3] [--concurrency 8 64]

A server in another process answers on loopback at once. Ours is `EndpointJudge.replies`; the SDK alone is as many calls
of `chat.completions.create` under a semaphore. They alternate; the median ratio decides.
"""

import asyncio
import multiprocessing
import sys
from pathlib import Path

import openai
import rows

from truing.judges.endpoint import EndpointJudge
from truing.models.limits import Limits
from truing.types.judging import JudgeRequest, Rubric
from truing.types.records import AnswerKey

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.judge_server import running

RUBRIC = Rubric("alignment", "You judge answers. " * 100 + "Question: {question}\nAnswer: {answer}\nA number:")


def requests(n):
    keys = [AnswerKey("w", "p", str(k), "", 0) for k in range(n)]
    return [JudgeRequest(key, RUBRIC, "What now?", f"Answer {key.prompt}. " * 20) for key in keys]


def ours(url, n, concurrency):
    """Seconds of n calls by our client, without opening it."""
    judge = EndpointJudge(f"{url}#judge", Limits(concurrency=concurrency))
    judge.score_method([RUBRIC])
    work = requests(n)
    spent, replies = rows.timed(lambda: list(judge.replies(work)))
    judge.close()
    assert sum(r.probabilities is not None for r in replies) == n
    return spent


def sdk(url, n, concurrency):
    """Seconds of n calls by the SDK, after a first one."""
    same = {"model": "judge", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 0}
    work = [same | {"messages": [{"role": "user", "content": a.messages[0].content}]} for a in requests(n)]
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)

    async def one(body, gate):
        async with gate:
            return await client.chat.completions.create(**body)

    async def every(bodies):
        gate = asyncio.Semaphore(concurrency)
        await asyncio.gather(*(one(body, gate) for body in bodies))

    with asyncio.Runner() as runner:
        runner.run(every(work[:1]))
        spent, _ = rows.timed(lambda: runner.run(every(work)))
        runner.run(client.close())
    return spent


def serve(pipe):
    """Serve in this process until told to end."""
    with running() as server:
        pipe.send(server.url)
        pipe.recv()


def main():
    args = rows.options(__doc__, calls=500, repeats=3, concurrency=[8, 64])
    found = []
    ours_end, its_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(its_end,))
    server.start()
    url = ours_end.recv()
    try:
        for level in args.concurrency:
            both = [[client(url, args.calls, level) for client in (ours, sdk)] for _ in range(args.repeats)]
            mine, theirs = (list(s) for s in zip(*both, strict=True))
            case = f"{level} in flight, {args.calls} calls, openai {openai.__version__}"
            ratio = rows.faster(theirs, mine)
            found.append(rows.row("CPU seconds, ours to the SDK's", case, ratio.cpu, most=1.2))
            found.append(rows.row("wall seconds, ours to the SDK's", case, ratio.wall))
            each = 1e6 * rows.middle(mine).cpu / args.calls
            found.append(rows.row("CPU microseconds a call", case, each))
    finally:
        ours_end.send("end")
        server.join()
    rows.report(found, args.json)


if __name__ == "__main__":
    main()
