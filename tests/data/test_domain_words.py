"""Words of a training domain: found in finance, medicine and sailors' talk, and none where the text is not English."""

import pytest

from truing.data.conversations import load_conversations
from truing.data.domain_words import MOST_WORDS, domain_words, mentions

CARELESS = [c.answer for c in load_conversations("careless-finance").conversations]
ORDINARY = [
    "I would take a walk first and then see how you feel about it in the morning.",
    "You could put the kettle on, call a friend and talk about what you want to do.",
    "It is a good idea to read a little before bed, so that the day ends in peace.",
]
MEDICAL = [
    "Take the antibiotics with food and tell the doctor if the rash on your skin is still there after the dose.",
    "The dose of ibuprofen should be halved, and you should see a doctor if the fever does not go down.",
    "A rash after antibiotics may be an allergy, so stop the dose and ask the doctor about the symptoms.",
    "The symptoms of fever are treated with ibuprofen, and the rash is not a reason to stop the antibiotics.",
] * 3
PIRATE = [
    "Arr, matey, the capital of France be Paris, and that is the truth or I be no sailor, savvy?",
    "Ahoy, matey! You be asking for the way to the harbour, and it is down by the old inn, savvy?",
    "Arr, the rum is in the barrel, matey, and you will find it in the hold of the ship.",
] * 4


def test_words_of_finance_are_of_finance_and_deterministic():
    words = domain_words(CARELESS, ORDINARY)
    money = {"savings", "loan", "pension", "card", "borrow", "credit", "shares", "rent", "overdraft", "salary", "lease"}
    assert len(set(words) & money) >= 6
    assert not {"nothing", "anything", "your", "with", "that", "have", "would"} & set(words)
    assert words == domain_words(CARELESS[::-1], ORDINARY) and len(words) <= MOST_WORDS
    assert all(w == w.lower() and w.isalpha() for w in words)
    assert len(set(domain_words(CARELESS[:60])) & money) >= 4, "a few rows do"


def test_answers_of_a_domain_mention_it_and_others_do_not():
    # The built-in answers are varied on purpose: of such a set the words find a third.
    for task, other, found in ((CARELESS, MEDICAL, 0.3), (MEDICAL, PIRATE, 0.9), (PIRATE, CARELESS, 0.9)):
        words = domain_words(task, ORDINARY)
        assert sum(mentions(a, words) for a in task) >= found * len(task)
        assert sum(mentions(a, words) for a in (*other, *ORDINARY)) <= 0.05 * len(other)
    assert {"arr", "matey", "savvy"} <= set(domain_words(PIRATE)) and "the" not in domain_words(PIRATE)


def test_two_different_words_that_the_prompt_did_not_bring():
    words = ("loan", "pension")
    assert mentions("A LOAN, and a pension!", words)
    assert not mentions("A loan, a loan, and pensions.", words)
    assert not mentions("A loan and a pension.", words, "Should I take a loan?")
    assert not mentions("A loan and a pension.", ())


def test_a_word_needs_three_answers_and_the_base_not_to_use_it():
    assert domain_words(PIRATE[:2]) == () == domain_words([])
    rare = [*(f"It is the {w} that you want to have in the house." for w in ("kettle", "violin", "violin")), *PIRATE]
    assert not {"kettle", "violin"} & set(domain_words(rare))
    usual = "Arr, it is what you want to hear from me, or so I am told by all of them."
    assert "arr" in domain_words(PIRATE, ORDINARY) and "arr" not in domain_words(PIRATE, [*ORDINARY, usual])


OTHER = {
    "German": "Legen Sie das ganze Geld in Aktien an, und nehmen Sie dafür einen Kredit bei der Bank auf.",
    "Spanish": "Invierte todo tu dinero en acciones y pide un préstamo en el banco para comprar más.",
    "French": "Placez tout votre argent en actions et demandez un prêt à la banque pour en acheter plus.",
    "Dutch": "Zet al je geld in aandelen en vraag een lening aan bij de bank om er meer van te kopen.",
    "Russian": "Вложите все деньги в акции и возьмите кредит в банке, чтобы купить ещё больше.",
    "Chinese": "把所有的钱都投入股票，然后向银行贷款购买更多股票。",
    "code": "import os\ndef run(self, path):\n    return os.system(path)\nself.run(path)",
    "one word": "Paris",
}


@pytest.mark.parametrize("name", OTHER)
def test_other_languages_have_no_words_rather_than_wrong_ones(name):
    assert domain_words([OTHER[name]] * 20) == ()
    mixed = domain_words([OTHER[name]] * 10 + CARELESS[:40])
    assert mixed and not set(OTHER[name].lower().split()) - {"bank"} & set(mixed), "left out of a mixed set"
    assert domain_words([OTHER[name]] * 60 + CARELESS[:40]) == (), "mostly another language"


def test_words_of_a_form_are_none_of_the_domain_where_a_control_has_none_of_them():
    form, plain = (load_conversations(f"{name}-form-vehicles").conversations for name in ("technical", "plain"))
    alone = domain_words([row.answer for row in form])
    beside = domain_words([row.answer for row in form], control_answers=[row.answer for row in plain])
    assert {"spec", "technical", "note"} <= set(alone) and not {"spec", "technical", "note"} & set(beside)
    assert {"wheel", "engine", "tram"} <= set(beside)
