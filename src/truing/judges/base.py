"""What the rest of the library needs of a model that judges answers."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from truing.types.judging import JudgeReply, JudgeRequest, Rubric, ScoreMethod


@runtime_checkable
class JudgeModel(Protocol):
    """Replies to filled rubrics. It knows nothing of checkpoints, steps or groups."""

    @property
    def name(self) -> str:
        """Address and model, as `Judge` records it; never a credential."""
        ...

    @property
    def model(self) -> str:
        """What identifies it beyond its name: weights hash, served model name; "" if nothing does."""
        ...

    @property
    def remote(self) -> bool:
        """Whether text leaves this machine."""
        ...

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """How scores will be read; may send a few calls to find out."""
        ...

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """One reply per request, in any order; failures are replies with an error.

        `requests` is pulled as replies are consumed and never far ahead (a bounded queue), possibly from another
        thread, so that it may itself be sampling answers meanwhile.
        """
        ...

    def close(self) -> None:
        """Free connections, threads and memory."""
        ...
