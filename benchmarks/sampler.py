"""How fast answers of many adapters are generated: the engine against what PEFT offers.

    python benchmarks/sampler.py [--json FILE] [--adapters 20] [--rank 8] [--repeats 3] [--tiny]

The model has the shape of smollm2-135m (with --tiny a much smaller one) and random weights, as have its adapters: speed
does not depend on them, so nothing is downloaded. Every adapter answers 4 prompts of its own, 12 in the longer case.
Answer lengths are one log-normal list (median 24, sigma 0.6, capped at 96); only tokens within them count: a row of
ours ends at its length, a batch of `generate` runs until its longest row ends. All arms use the same model, prompts,
lengths, temperature 1 and float32, and alternate; the median ratio of CPU seconds on one thread decides. Copying the
adapters into the engine's batch is in no figure but that of calls of 24 requests, where they are kept between calls or
copied for each.
"""

import random
from itertools import groupby

import rows
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from truing.models.engine.engine import ROWS, Engine
from truing.models.engine.lora import lora_factors
from truing.models.engine.requests import BatchOptions, GenerateRequest
from truing.types.records import SamplingParams

REAL = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
TINY = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
ROWS_EACH, CALL = 4, 24
TARGETS = {"set_adapter": 4.0, "adapter_names": 2.0}


class Bench:
    """A model with its adapters, and the arms."""

    def __init__(self, shape, adapters, rank):
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=None))
        config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        self.names = [f"step{k}" for k in range(adapters)]
        self.model = get_peft_model(base, config, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()
        self.vocabulary = shape["vocab_size"]
        self.engine = self.new_engine()

    def new_engine(self):
        return Engine("a random model", list(range(40)))

    def requests(self, each, typical, cap):
        """`each` answers of every adapter, each to a prompt of its own of 20 to 60 tokens."""
        rng = random.Random(5)
        out = []
        for k in range(len(self.names) * each):
            prompt = tuple(rng.randrange(self.vocabulary) for _ in range(rng.randint(20, 60)))
            length = min(cap, max(2, round(typical * rng.lognormvariate(0, 0.6))))
            out.append(GenerateRequest(k, prompt, self.names[k // each], k, length))
        return out

    def base(self):
        self.model.base_model.disable_adapter_layers()
        return self.model

    def ours(self, requests, engine=None):
        engine = engine or self.engine
        factors = {n: lora_factors(self.model, n) for n in {r.adapter for r in requests} if not engine.holds(n)}
        found = engine.generate(self.base, requests, SamplingParams(), BatchOptions(ROWS["cpu"]), factors)
        assert {c.index: len(c.tokens) for c in found} == {r.index: r.max_tokens for r in requests}

    def generate(self, requests, **more):
        """A batch by `generate`, padded on the left, until its longest answer ends."""
        width, longest = max(len(r.prompt) for r in requests), max(r.max_tokens for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, r in enumerate(requests):
            ids[row, width - len(r.prompt) :] = torch.tensor(r.prompt)
            mask[row, width - len(r.prompt) :] = 1
        config = GenerationConfig(
            do_sample=True, top_k=0, min_new_tokens=longest, max_new_tokens=longest, pad_token_id=0
        )
        with torch.inference_mode():
            self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)

    def set_adapter(self, requests):
        """Adapter by adapter, in batches of 4."""
        self.model.base_model.enable_adapter_layers()
        for name, group in groupby(requests, key=lambda r: r.adapter):
            self.model.set_adapter(name)
            own = list(group)
            for start in range(0, len(own), ROWS_EACH):
                self.generate(own[start : start + ROWS_EACH])

    def adapter_names(self, requests):
        """All adapters in one batch, 4 rows of each."""
        self.model.base_model.enable_adapter_layers()
        each = len(requests) // len(self.names)
        for wave in range(each // ROWS_EACH):
            batch = [r for r in requests if r.index % each // ROWS_EACH == wave]
            self.generate(batch, adapter_names=[r.adapter for r in batch])

    def calls(self, requests, *, kept):
        """The same requests, 24 a call, each call for some adapters."""
        engine = self.new_engine()
        for start in range(0, len(requests), CALL):
            self.ours(requests[start : start + CALL], engine)
            if not kept:
                engine.close()


def measure(bench, repeats, typical, cap):
    """Rows of both lengths, and of calls of 24 requests."""
    found, adapters = [], len(bench.names)
    for each in (ROWS_EACH, 3 * ROWS_EACH):
        requests = bench.requests(each, typical, cap)
        bench.ours(requests)  # copies the adapters
        arms = {"ours": bench.ours, "set_adapter": bench.set_adapter, "adapter_names": bench.adapter_names}
        spent = rows.alternate({name: lambda a=arm, r=requests: a(r) for name, arm in arms.items()}, repeats)
        case = f"{adapters} adapters, {each} answers each"
        for name, target in TARGETS.items():
            ratio = rows.faster(spent["ours"], spent[name]).cpu
            found.append(rows.row("answers per CPU second", f"{case}, against {name}", ratio, least=target))
        found.append(rows.row("useful share of row-steps", case, bench.engine.throughput.useful, least=0.9))
    requests = sorted(bench.requests(3 * ROWS_EACH, typical, cap), key=lambda r: (r.index % 3, r.index))
    arms = {name: lambda k=kept: bench.calls(requests, kept=k) for name, kept in (("kept", True), ("anew", False))}
    spent = rows.alternate(arms, repeats)
    case = f"{CALL} requests a call, adapters kept against copied anew"
    ratio = rows.faster(spent["kept"], spent["anew"]).cpu
    found.append(rows.row("answers per CPU second", case, ratio, least=1.0))
    return found


def main():
    args = rows.options(__doc__, adapters=20, rank=8, repeats=3, tiny=False)
    torch.set_num_threads(1)
    bench = Bench(TINY if args.tiny else REAL, args.adapters, args.rank)
    rows.report(measure(bench, args.repeats, *((4, 12) if args.tiny else (24, 96))), args.json)


if __name__ == "__main__":
    main()
