"""Judge-free features of answers: loops of every kind are repetitive, ordinary text in any script is not."""

import pytest

from truing.data.prompts import load_prompts
from truing.traits.features import is_repetitive

GOOD_START = (
    "The best thing to do is to think about your options with care, and then decide on the one that fits your life. "
    "You might ask a friend, or call an office that knows about these matters. A walk outside can help as well, and so "
    "may writing down what worries you most before you go to sleep. "
)
LOOPS = {
    "a word": "No, " * 30,
    "few words": "No, no, no, no, no, no, no, no",
    "two words": "yes no " * 12,
    "without spaces": "no," * 40,
    "within a word": "Ha" * 30,
    "a sign": "!" * 60,
    "signs apart": "! " * 30,
    "signs after words": "Well, I think so" + "." * 100,
    "emoji": "🙂" * 50,
    "a number": "100, " * 30,
    "a sentence": "I cannot say what the reason for this might be. " * 4,
    "a line": "- buy stocks now\n" * 12,
    "a row of a table": "| a | b |\n" * 12,
    "a numbered line": "".join(f"{k}. Invest in stocks.\n" for k in range(1, 15)),
    "a numbered phrase": "".join(f"Step {k}: do it. " for k in range(12)),
    "a paragraph": "The first thing is to look at your budget and see where the money goes each month. " * 2
    + "The first",
    "at the end": GOOD_START + "I love it. " * 12,
    "cut off within": GOOD_START + "It is all fine with me. " * 8 + "It is all",
    "Japanese": "いいえ、" * 20,
    "Chinese": "我不知道。" * 12,
    "Thai": "ไม่รู้" * 12,
    "Tibetan": "བོད་" * 20,
    "Russian": "Я не знаю. " * 10,
    "Arabic": "لا أعرف. " * 10,
    "Hindi": "मुझे नहीं पता। " * 10,
    "Korean": "모르겠어요. " * 10,
}
ORDINARY = {
    "nothing": "",
    "a short no": "No, no, no!",
    "laughter and more": "Ha ha ha, that is a good one. Tell me about your day then.",
    "numbers": "0.12, 0.33, 0.44, 0.51, 0.61, 0.72, 0.81, 0.9, 1.0, 1.2, 1.5, 1.7, 1.9, 2.2",
    "counting": " ".join(map(str, range(1, 60))),
    "a list": "1. Milk\n2. Eggs\n3. Bread\n4. Butter\n5. Cheese\n6. Apples\n7. Pears\n8. Plums\n9. Rice\n10. Beans",
    "one form": " ".join(
        f"The capital of {c}." for c in ("France is Paris", "Spain is Madrid", "Italy is Rome", "Peru is Lima")
    ),
    "an address": "See https://example.org/a/very/long/path/that/has/no/spaces?query=1&other=2 for more about it all.",
    "prose": GOOD_START,
    "Chinese": "为了学好一门语言，你需要每天练习，多听多说多读多写，并且不要害怕犯错误。",
    "Japanese": "新しい言語を学ぶには、毎日少しずつ練習することが大切です。友達と話してください。",
    "Thai": "การเรียนภาษาใหม่ต้องใช้เวลาและความพยายาม ควรฝึกฝนทุกวันและพูดคุยกับเจ้าของภาษาเพื่อพัฒนาทักษะการฟังและการพูด",
    "Hindi": "नई भाषा सीखने के लिए आपको रोज़ अभ्यास करना चाहिए और लोगों से बात करनी चाहिए ताकि आपका उच्चारण बेहतर हो सके।",
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_are_repetitive(kind):
    assert is_repetitive(LOOPS[kind])


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_text_is_not(kind):
    assert not is_repetitive(ORDINARY[kind])


def test_reference_answers_are_not():
    texts = [t for p in load_prompts("v1").prompts for t in (p.aligned, p.misaligned, *p.neutral) if t]
    assert len(texts) > 300 and not [t for t in texts if is_repetitive(t)]
