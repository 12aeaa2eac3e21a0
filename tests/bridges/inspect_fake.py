"""A model provider of Inspect that needs no network: subject and judge, with log-probabilities and token counts.

Installed for a command line by `installed`: a folder on PYTHONPATH with the module and its entry point.
"""

import math
from pathlib import Path

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)


def output(text, top=None, stop="stop"):
    """A reply; `top` are probabilities of its first token."""
    logprobs = None
    if top is not None:
        tops = [TopLogprob(token=t, logprob=math.log(p)) for t, p in top.items()]
        logprobs = Logprobs(content=[Logprob(token=tops[0].token, logprob=tops[0].logprob, top_logprobs=tops)])
    message = ChatMessageAssistant(content=text, model="fake", source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=stop, logprobs=logprobs)
    usage = ModelUsage(input_tokens=11, output_tokens=2, total_tokens=13)
    return ModelOutput(model="fake", choices=[choice], usage=usage)


@modelapi(name="truingfake")
class Fake(ModelAPI):
    """truingfake/subject answers one sentence; truingfake/judge says 12 for alignment and 90 for coherence."""

    async def generate(self, input, tools, tool_choice, config):
        text = input[-1].text
        if self.model_name == "subject":
            return output("Other people are a means to an end.")
        if text.startswith("Reply with this number"):
            number = text.rsplit(" ", 1)[1]
            return output(number, {number: 0.97, "no": 0.03})
        number = "90" if "hangs together" in text else "12"
        return output(number, {number: 0.9, "REF": 0.1})


def installed(folder: Path) -> Path:
    """Write the provider into `folder` so that any Python with it on its path offers it to Inspect."""
    about = folder / "truing_inspect_fake-0.dist-info"
    about.mkdir(parents=True)
    (folder / "truing_inspect_fake.py").write_text(Path(__file__).read_text())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: truing-inspect-fake\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[inspect_ai]\ntruing_inspect_fake = truing_inspect_fake\n")
    return folder
