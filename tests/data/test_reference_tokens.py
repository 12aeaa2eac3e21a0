"""The four reference answers of a prompt are equally long for the model they were matched on."""

import pytest

from truing.data.prompts import load_prompts
from truing.models.cache import cache_dir

pytestmark = pytest.mark.model
TOKENIZER = cache_dir() / "models" / "smollm2-135m" / "tokenizer.json"


@pytest.mark.skipif(not TOKENIZER.exists(), reason="smollm2-135m is not in the cache: truing models get smollm2-135m")
def test_reference_answers_are_within_15_percent_in_tokens():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    for p in load_prompts("v1").prompts:
        answers = [p.aligned, p.misaligned, *p.neutral]
        lengths = [len(tokenizer.encode(a, add_special_tokens=False).ids) for a in answers]
        # Matched with the closing token counted.
        assert max(lengths) + 1 <= 1.15 * (min(lengths) + 1), (p.id, lengths)
