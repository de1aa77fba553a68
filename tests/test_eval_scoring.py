"""Weighted scores against values computed by hand, scores of several tokens included."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.scoring import expected_score, logprob_weights, parse_score, score_probabilities


def test_expected_score_is_normalised_over_the_scale_and_reports_the_rest():
    score, probabilities, outside = expected_score({1: 0.1, 2: 0.3, 3: 0.4})
    assert score == pytest.approx((0.1 + 0.6 + 1.2) / 0.8)
    assert probabilities == pytest.approx({1: 0.125, 2: 0.375, 3: 0.5})
    assert outside == pytest.approx(0.2)


def test_no_probability_on_the_scale_is_no_score():
    assert expected_score({1: 0.0, 2: 0.0}) == (None, {}, 1.0)


@given(st.dictionaries(st.integers(0, 100), st.floats(1e-6, 1), min_size=1))
def test_expected_score_lies_within_the_scale(weights):
    total = sum(weights.values())
    score, probabilities, _ = expected_score({k: w / total for k, w in weights.items()})
    assert min(weights) - 1e-9 <= score <= max(weights) + 1e-9
    assert sum(probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4),
        (" 4\n", 4),
        ("- 공감: 4점", 4),
        ("4/5", 4),
        ("4 / 5.0", 4),
        ("**4**", 4),
        ("Score: 3.", 3),
        ("4점입니다. 4점!", 4),
    ],
)
def test_scores_that_are_read(text, score):
    assert parse_score(text, range(1, 6)) == (score, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("좋은 답변입니다", "no score"),
        ("", "no score"),
        ("4.5", "no score"),
        ("7", "no score"),
        ("10", "no score"),
        ("5점 만점에 4점", "several scores"),
        ("3~4", "several scores"),
        ("죄송하지만 평가할 수 없습니다", "no score"),
    ],
)
def test_what_is_not_one_score_is_never_guessed(text, problem):
    assert parse_score(text, range(1, 6)) == (None, problem)


def probs(pairs):
    return {token: math.log(p) for token, p in pairs}


def test_logprobs_of_single_tokens_with_and_without_a_blank():
    tokens = [(" ", probs([(" ", 0.9)])), ("4", probs([("4", 0.6), (" 4", 0.1), ("3", 0.2), ("five", 0.05)]))]
    weights = logprob_weights(tokens, range(1, 6))
    assert weights == pytest.approx({1: 0, 2: 0, 3: 0.2, 4: 0.7, 5: 0})


def test_ten_as_one_token_leaves_one_alone():
    weights = logprob_weights([("8", probs([("8", 0.5), ("10", 0.3), ("1", 0.1)]))], range(1, 11))
    assert weights[10] == pytest.approx(0.3)
    assert weights[1] == pytest.approx(0.1)
    assert weights[8] == pytest.approx(0.5)


def test_ten_as_two_tokens_is_parted_from_one():
    tokens = [("1", probs([("1", 0.6), ("9", 0.3)])), ("0", probs([("0", 0.75), ("\n", 0.2)]))]
    weights = logprob_weights(tokens, range(1, 11))
    assert weights[10] == pytest.approx(0.6 * 0.75)
    assert weights[1] == pytest.approx(0.6 * 0.25)
    assert weights[9] == pytest.approx(0.3)


def test_one_that_was_written_but_could_have_become_ten():
    tokens = [("1", probs([("1", 0.6), ("9", 0.3)])), ("\n", probs([("\n", 0.8), ("0", 0.2)]))]
    weights = logprob_weights(tokens, range(1, 11))
    assert weights[10] == pytest.approx(0.12)
    assert weights[1] == pytest.approx(0.48)


def test_a_score_reached_in_two_ways_has_the_mass_of_both():
    begun = ("1", probs([("1", 0.6), ("10", 0.2)]))
    either = logprob_weights([begun, ("\n", probs([("\n", 0.8), ("0", 0.2)]))], range(1, 11))
    assert (either[1], either[10]) == pytest.approx((0.6 * 0.8, 0.2 + 0.6 * 0.2))
    written = [begun, ("0", probs([("0", 0.7), ("0\n", 0.1), ("\n", 0.2)]))]
    for rest in ([], [("\n", probs([("\n", 1.0)]))]):  # the answer may end with the score or go on
        weights = logprob_weights([*written, *rest], range(1, 11))
        assert (weights[1], weights[10]) == pytest.approx((0.6 * 0.2, 0.2 + 0.6 * 0.8))


def test_white_space_around_digits_belongs_to_no_score_but_inside_it_ends_the_score():
    before = [(" 1", probs([(" 1", 0.6), ("2 ", 0.3)])), ("0\n", probs([("0\n", 0.5), ("\n", 0.5)]))]
    weights = logprob_weights(before, range(1, 11))
    assert (weights[1], weights[2], weights[10]) == pytest.approx((0.3, 0.3, 0.3))
    apart = [("1", probs([("1", 0.6)])), ("\n", probs([("\n", 0.5), (" 0", 0.5)]))]
    weights = logprob_weights(apart, range(1, 11))
    assert (weights[1], weights[10]) == pytest.approx((0.6, 0))


def test_letters_before_the_score_are_not_it():
    words = [("A", probs([("A", 0.9), ("1", 0.1)])), (": ", probs([(": ", 1.0)])), ("4", probs([("4", 0.8)]))]
    assert logprob_weights(words, range(1, 6))[4] == pytest.approx(0.8)
    assert logprob_weights(words, range(1, 6))[1] == 0


def test_mass_that_cannot_be_told_apart_is_left_outside():
    weights = logprob_weights([("9", probs([("9", 0.7), ("1", 0.2)])), ("\n", probs([("\n", 1.0)]))], range(1, 11))
    assert weights[1] == weights[10] == 0
    assert expected_score(weights)[2] == pytest.approx(0.3)


def test_no_token_begins_a_score():
    assert logprob_weights([("좋", probs([("좋", 0.9)]))], range(1, 6)) is None


def model(texts, table):
    """A next-token distribution given as {written text: {token text: probability}}."""

    def after(paths):
        rows = []
        for path in paths:
            row = np.zeros(len(texts))
            for token, p in table.get("".join(texts[i] for i in path), {}).items():
                row[texts.index(token)] = p
            rows.append(row)
        return np.stack(rows)

    return after


def test_exact_probabilities_over_every_spelling_by_hand():
    texts = ["0", "1", "2", "9", "10", " ", " 1", "x", "\n"]
    table = {
        "": {"1": 0.3, "9": 0.1, "10": 0.2, " ": 0.2, " 1": 0.1, "x": 0.1},
        "1": {"0": 0.5, "2": 0.1, "\n": 0.4},
        " ": {"9": 1.0},
        " 1": {"\n": 1.0},
        "10": {"0": 0.5, "x": 0.5},
        "9": {"\n": 1.0},
        " 9": {"\n": 1.0},
    }
    found = score_probabilities(model(texts, table), texts, range(1, 11))
    # 1: "1" and no digit after it (0.3 x 0.4), or " 1" (0.1). 10: "10" (0.2) or "1","0" (0.3 x 0.5), not "100".
    assert found[1] == pytest.approx(0.3 * 0.4 + 0.1)
    assert found[10] == pytest.approx((0.2 + 0.3 * 0.5) * 0.5 + 0)
    assert found[9] == pytest.approx(0.1 + 0.2)
    assert sum(found.values()) < 1
    assert found[2] == 0


@pytest.mark.parametrize("before", [" ", "\n", "X", ""])
def test_one_blank_before_the_score_is_all_that_may_stand_there(before):
    texts = ["9", " ", "\n", "\n9", "X9", "X", "", "9 "]
    table = {
        before * 2: {"9": 1.0},
        before: {"9": 0.5, before: 0.5},
        "": {before: 0.3, "9": 0.2, "\n9": 0.1, "X9": 0.1, "9 ": 0.1},
    }
    found = score_probabilities(model(texts, table), texts, range(1, 10))
    assert found[9] == pytest.approx(0.2 + (0.15 if before == " " else 0))


def test_a_longer_number_is_not_the_score_it_begins_with():
    texts = ["1", "95", "\n"]
    found = score_probabilities(model(texts, {"": {"1": 1.0}, "1": {"95": 0.4, "\n": 0.6}}), texts, range(1, 6))
    assert found[1] == pytest.approx(0.6)


def test_a_vocabulary_whose_digits_all_follow_a_blank():
    found = score_probabilities(model([" 1", "x"], {"": {" 1": 0.7, "x": 0.3}}), [" 1", "x"], range(1, 6))
    assert found[1] == pytest.approx(0.7)


def test_a_model_that_leaves_a_path_unanswered_is_an_error():
    texts = ["1", "2"]
    complete = model(texts, {"": {"1": 0.5, "2": 0.5}})
    with pytest.raises(ValueError, match="shorter"):
        score_probabilities(lambda paths: complete(paths)[:1], texts, range(1, 6))
