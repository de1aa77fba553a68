"""The one place that turns turns into text and token ids, for training and serving alike.

Both sides call `encode`, so the ids a served model sees are the ids it was trained on, by construction. What a user
types can never end a turn or open another: special tokens and role markers in message contents are made inert first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

_HERE = Path(__file__).parent


def system_prompt(name: str | None) -> str | None:
    """The text of a system prompt: a name under ``pipeline/prompts``, a path to a text file, or ``none``.

    Raises:
        UserError: there is neither such a name nor such a file.
    """
    if name is None or name == "none":
        return None
    for path in (_HERE / "prompts" / f"{name}.txt", Path(name)):
        if path.is_file():
            return path.read_text("utf-8").strip()
    known = ", ".join(sorted(p.stem for p in (_HERE / "prompts").glob("*.txt")))
    raise UserError(f"no system prompt {name!r}", f"name one of: none, {known}, or a path to a text file")


def template(name_or_path: str) -> str:
    """A chat template: a name under ``pipeline/templates`` or a path to a Jinja file.

    Raises:
        UserError: there is neither.
    """
    for path in (_HERE / "templates" / f"{name_or_path}.jinja", Path(name_or_path)):
        if path.is_file():
            return path.read_text("utf-8").strip()
    known = ", ".join(sorted(p.stem for p in (_HERE / "templates").glob("*.jinja")))
    raise UserError(f"no chat template {name_or_path!r}", f"name one of: {known}, or a path to a .jinja file")


def with_system(messages: Sequence[Message], system: str | None) -> list[dict[str, str]]:
    """The conversation with ``system`` in front, unless it brings a system turn of its own."""
    turns = [dict(m) for m in messages]
    if system and (not turns or turns[0]["role"] != "system"):
        return [{"role": "system", "content": system}, *turns]
    return turns


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str:
    """The conversation as the text the model reads, contents made inert (see `inert`).

    What a message holds beside role and content, such as a ``sentiment``, is there for templates that read it.

    Raises:
        UserError: the tokenizer has no chat template, or its template refuses this conversation.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} brings no chat template",
            "name one in the recipe: model.chat_template: gonggam (or a path to a .jinja file)",
        )
    turns = [{key: v if key == "role" else inert(tokenizer, v) for key, v in m.items()} for m in messages]
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise UserError(f"the chat template refuses this conversation ({error})", "check the order of roles") from error


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token by which the chat template ends a reply: EOS, or one of its own, such as Phi-3's ``<|end|>``."""
    reply = "네"
    text = render(tokenizer, [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": reply}])
    after = text[text.rindex(reply) + len(reply) :].lstrip()
    tokens = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
    return next((token for token in tokens if token.strip() and after.startswith(token)), None)


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of the rendered conversation; with ``add_generation_prompt`` the model's reply comes next."""
    text = render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Message]], int]:
    """Counts the tokens of messages as the chat template renders them, or of their text where there is no template."""
    if tokenizer.chat_template:
        return lambda messages: len(encode(tokenizer, messages, add_generation_prompt=False))
    return lambda messages: len(tokenizer("\n".join(m["content"] for m in messages))["input_ids"])


def inert(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """``text`` with every special token and role marker of the template broken by a space after its first character.

    Text that holds none, which is nearly all text, comes back unchanged.
    """
    pattern = _marker_pattern(tokenizer.chat_template, tuple(sorted(tokenizer.get_added_vocab())))
    return pattern.sub(lambda match: match[0][0] + " " + match[0][1:], text) if pattern else text


@lru_cache(maxsize=16)
def _marker_pattern(chat_template: str | None, added_tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """What must not stand in a message: added tokens, and the string literals by which the template marks roles."""
    literals = re.findall(r"'([^']*)'|\"([^\"]*)\"", chat_template or "")
    literals += [(line, "") for line in re.sub(r"\{[{%#].*?[}%#]\}", "\n", chat_template or "", flags=re.S).split("\n")]
    words = {part.strip() for pair in literals for part in "".join(pair).replace("\\n", "\n").split("\n")}
    # A role marker ends in a bracket or a colon, or starts like a heading: '[INST]', 'Human:', '### 응답:', '<usr>'.
    markers = {w for w in words if len(w) >= 4 and (re.search(r"[\]>:]$", w) or w.startswith("###"))}
    # Vocabularies add plain words and runs of spaces too; only bracketed tokens such as '<|im_end|>' steer a model.
    specials = {token for token in added_tokens if len(token) > 1 and token[0] in "<[{|"}
    wanted = sorted(specials | markers, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, wanted))) if wanted else None
