"""Rows that hold prefixes of one conversation become one, and nothing taught is lost or doubled."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import Conversation, Turn
from data_prep.reassemble import DUPLICATE, KEPT, MERGED, fates, given_turns, reassemble


def talk(*texts, **rest):
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Conversation("", turns, "s", **rest)


trees = st.lists(
    st.lists(st.sampled_from("가나다"), min_size=2, max_size=8).filter(lambda t: len(t) % 2 == 0), max_size=12
)


@given(trees)
def test_reassembly_loses_and_doubles_nothing(rows):
    before = [talk(*row) for row in rows]
    after = reassemble(before)
    targets = Counter(target for conversation in after for target in conversation.targets())
    assert set(targets) == {target for conversation in before for target in conversation.targets()}
    assert set(targets.values()) <= {1}
    whole = {conversation.turns for conversation in before}
    assert {conversation.turns for conversation in after} <= whole


def test_exploded_rows_become_one_and_branches_stay():
    one, two = ("하나", "둘", "셋", "넷", "다섯", "여섯"), ("하나", "둘", "셋", "다른 답")
    rows = [talk(*one[:2]), talk(*one, meta={"row": 2}), talk(*one[:4]), talk(*two), talk(*two)]
    after = reassemble(rows)
    assert [c.turns for c in after] == [talk(*one).turns, talk(*two).turns]
    assert [c.given for c in after] == [0, 2]
    assert after[0].meta == {"row": 2}, "what the source knew of the longest row is kept"


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, [MERGED, KEPT, DUPLICATE, DUPLICATE, KEPT]),
        ({"exact": False}, [MERGED, KEPT, MERGED, MERGED, KEPT]),
        ({"prefixes": False}, [KEPT, KEPT, DUPLICATE, DUPLICATE, KEPT]),
        ({"exact": False, "prefixes": False}, [KEPT] * 5),
    ],
)
def test_each_rule_can_be_switched_off(switches, expected):
    rows = [
        talk("가", "나"),
        talk("가", "나", "다", "라"),
        talk("가", "나", "다", "라"),
        talk("가", "나"),
        talk("다", "라"),
    ]
    chains = [row.prefix_hashes() for row in rows]
    found = fates([value for chain in chains for value in chain], [len(chain) for chain in chains], **switches)
    assert found.tolist() == expected


def test_hashes_of_all_64_bits_are_told_apart():
    assert fates([1, 2**63, 2**63 + 1, 2**63], [1, 1, 1, 1]).tolist() == [KEPT, KEPT, KEPT, DUPLICATE]


def test_no_rows_have_no_fate():
    assert fates([], []).tolist() == []
    assert reassemble([]) == []


def test_only_replies_make_turns_given():
    taught = set()
    assert given_turns(talk("가", "나", "다", "라"), taught) == 0
    assert given_turns(talk("가", "나", "다", "마"), taught) == 2, "the question they share is not taught by either"
    assert given_turns(talk("가", "나", "다", "마", "바", "사"), taught) == 4
    assert given_turns(talk("바", "나"), taught) == 0, "the same reply to another question is new"
