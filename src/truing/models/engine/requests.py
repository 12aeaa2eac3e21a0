"""What goes into the engine and what comes out: answers wanted, answers, and how the work goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer wanted."""

    index: int  # the caller's number
    prompt: tuple[int, ...]  # its tokens
    adapter: str  # name of the adapter; "" for the model as it is
    seed: int  # of its random stream
    max_tokens: int  # most tokens of the answer, at least 1


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, or why there is none."""

    index: int  # the caller's number
    tokens: list[int]  # of the answer, with the token that ended it
    failed: bool = False  # whether the logits held NaN


@dataclass(slots=True)
class Throughput:
    """What a scheduler has done so far."""

    answers: int = 0  # finished
    row_steps: int = 0  # rows computed, over all passes
    free_steps: int = 0  # rows that stood empty while answers were waiting, over all passes
    kept: int = 0  # row-steps whose token became part of an answer
    prompt_tokens: int = 0  # tokens of prompts computed
    in_flight: int = 0  # rows now
    waiting: int = 0  # answers not begun

    @property
    def useful(self) -> float:
        """Share of row-steps that gave a token of an answer: of the rows computed, and of those that stood empty."""
        return self.kept / max(1, self.row_steps + self.free_steps)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How answers are batched and what ends them."""

    rows: int  # most rows in flight
    stop_ids: Sequence[int] = ()  # tokens that end an answer
    ends: Callable[[list[int]], bool] | None = None  # whether a text ends with these tokens so far; for stop strings
    pass_tokens: int = 2048
    """tokens of prompts that a pass takes, unless one prompt is longer: at the start few rows should stand empty"""

    def stops(self, tokens: list[int]) -> bool:
        """Whether an answer ends with the last of these tokens."""
        return tokens[-1] in self.stop_ids or (self.ends is not None and self.ends(tokens))
