"""The safety layer outside the model: the risk of what a user writes, and what a model must never say.

`pipeline.chat.risk` tells the risk of one message alone; here the conversation so far is in view. On ``high`` the
texts of ``data/crisis.yaml`` answer instead of the model. What it was measured to catch and to miss stands in
``docs/safety.md``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from pipeline.chat.resources import data, patterns, squeeze
from pipeline.chat.risk import Assessment, Kind, Risk, Standing, by_rules, classifier, signs, spelled, weigh

__all__ = [
    "Assessment", "Kind", "Risk", "Standing",
    "assess", "check_output", "crisis_text", "fixed_text", "standing_text",
]  # fmt: skip

_ASKED = 3
"""How many denials or silences in a row are asked on; then the conversation goes on."""


def assess(
    text: str,
    history: Sequence[str] = (),
    *,
    threshold: float | None = None,
    concern: Kind | None = None,
    assessed: bool = False,
) -> Assessment:
    """Risk of ``text``, with the user's earlier messages in view.

    Args:
        text: the message, any length.
        history: the user's earlier messages of this session, oldest first.
        threshold: probability from which the classifier alone calls a message high; None: as shipped.
        concern: kind of a danger told before ``history`` begins (see `pipeline.chat.session.Session.in_view`).
        assessed: each of ``history`` was assessed when it came, and none told of a danger by itself.
    """
    found = _alone(text, threshold)
    if found.risk == "high" or not (history or concern):
        return found
    kind, since = (concern, history) if assessed else _told(history, threshold, concern)
    return _broken_up(text, history) or _gathered(text, history) or _standing(text, since, kind) or found


def check_output(reply: str, said: str = "") -> tuple[str, ...]:
    """What in a model's reply must not be said: names of the kinds found (methods, diagnosis, contact data ...)."""
    allowed = "|".join(map(re.escape, data("safety")["numbers"]))
    text = re.sub(rf"(?<![\d-])(?:{allowed})(?![\d-])", "", reply)
    return tuple(kind for kind, pattern in _output().items() if pattern.search(text))


def crisis_text(kind: Kind | None, times: int) -> str:
    """The words people wrote for a message of high risk; ``times``: how often the session has heard them."""
    texts = data("crisis")[kind if kind in ("suicide", "self_harm", "danger", "asking") else "suicide"]
    return (texts["first"] if times == 0 else texts["again"][(times - 1) % len(texts["again"])]).strip()


def standing_text(standing: Standing, times: int) -> str:
    """The words that ask on where a danger stands; ``times``: how often the session has been asked on before."""
    texts = data("crisis")["standing"][standing]
    return texts[times % len(texts)].strip()


def fixed_text(reply: str) -> tuple[Kind | None, Standing | None]:
    """Whose fixed words a reply is: the kind of danger it answered, or how the message before it had answered."""
    return _fixed().get(reply.strip(), (None, None))


def _alone(text: str, threshold: float | None) -> Assessment:
    if not re.search(r"\w", text):
        return Assessment("none")
    return weigh(text, classifier().probabilities(text[:1000]), threshold)


def _told(history: Sequence[str], threshold: float | None, concern: Kind | None) -> tuple[Kind | None, Sequence[str]]:
    """Kind of the last danger that was told, and what was said since."""
    for place in range(len(history) - 1, -1, -1):
        if (found := _alone(history[place], threshold)).risk == "high":
            return found.kind, history[place + 1 :]
    return concern, history


def _broken_up(text: str, history: Sequence[str]) -> Assessment | None:
    """Words of danger broken over several short messages."""
    for count in range(1, min(len(history), 3) + 1):
        *_, last = parts = [*history[-count:], text]
        if all(len(part) <= 12 for part in parts) and last and all(by_rules(part).risk != "high" for part in parts):
            found = by_rules("".join(parts))
            if found.risk == "high":
                return Assessment("high", ("across_messages", *found.reasons), found.kind)
    return None


def _gathered(text: str, history: Sequence[str]) -> Assessment | None:
    """Signs of a goodbye that none of the messages shows alone."""
    if signs(text) and by_rules(text + " " + " ".join(history)).reasons == ("several_signs",):
        return Assessment("high", ("several_signs", "across_messages"), "asking")
    return None


def _standing(text: str, since: Sequence[str], kind: Kind | None) -> Assessment | None:
    """What follows a danger of this kind: asked on where it affirms, denies or withdraws, low risk otherwise."""
    if kind is None:
        return None
    answers = [_answer(said) for said in (*since, text)]
    *before, answer = answers
    # A bare yes or no speaks of the danger only as long as nothing else was spoken of.
    if answer == "affirmed" and all(before):
        return Assessment("high", ("standing_affirmed",), kind, answer)
    unmoved = answer == "withdrawn" or (answer == "denied" and all(before))
    if unmoved and sum(earlier in ("denied", "withdrawn") for earlier in before) < _ASKED:
        return Assessment("high", (f"standing_{answer}",), kind, answer)
    return Assessment("low", ("earlier_high",), kind)


def _answer(text: str) -> Standing | None:
    """How a short message answers a question about danger; None: it speaks of something."""
    plain = squeeze(text)
    if not plain:
        return "withdrawn"
    for answer in ("affirmed", "denied", "withdrawn"):
        if len(plain) <= 30 and patterns("standing", answer).search(spelled(text)):
            return answer
    return None


@cache
def _fixed() -> dict[str, tuple[Kind | None, Standing | None]]:
    texts = data("crisis")
    found: dict[str, tuple[Kind | None, Standing | None]] = {
        text.strip(): (None, standing) for standing, own in texts["standing"].items() for text in own
    }
    for kind in ("suicide", "self_harm", "danger", "asking"):
        found |= {text.strip(): (kind, None) for text in (texts[kind]["first"], *texts[kind]["again"])}
    return found


@cache
def _output() -> dict[str, re.Pattern[str]]:
    return {kind: re.compile(pattern) for kind, pattern in data("safety")["output"].items()}
