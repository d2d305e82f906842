from collections import Counter

from letters import Letters

from aftershock.tasks import encode, matches, probe_items

ITEMS = probe_items()


def test_the_probe_set_covers_three_languages_and_every_skill():
    groups = Counter(item.group for item in ITEMS)
    assert len(ITEMS) >= 96
    assert {group.split("/")[0] for group in groups} == {"en", "fr", "es"}
    for language in ("en", "fr", "es"):
        for skill in ("fact", "commonsense", "arithmetic", "text", "story"):
            assert groups[f"{language}/{skill}"] >= 4


def test_every_probe_item_is_short_and_asked_once():
    assert all(item.max_new_tokens <= 16 for item in ITEMS)
    assert all(len(context) <= 160 for item in ITEMS for context in item.contexts)
    assert len({(item.contexts, item.continuations) for item in ITEMS}) == len(ITEMS)


def test_every_reference_passes_its_own_judgement():
    for item in ITEMS:
        if item.kind == "generation" and item.answer is not None:
            assert matches(item, str(item.answer)) == (True, 1.0), item.id
            # The prompt must not answer by itself when a model repeats nothing but its end.
            assert matches(item, "") == (False, 0.0), item.id


def test_right_options_stand_at_every_place():
    answers = Counter(item.answer for item in ITEMS if item.kind == "choice")
    assert max(answers.values()) <= answers.total() / 2


def test_options_differ_and_encode():
    for item in ITEMS:
        assert len(encode(item, Letters())) == len(item.contexts)
        if item.kind == "choice":
            assert len(set(item.continuations)) == len(item.continuations)
