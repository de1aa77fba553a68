"""A judge in this process: a causal language model whose probability of every score is computed, not sampled."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.judges import JudgeSpec, Question, Verdict
from eval.scoring import Path, expected_score, score_probabilities

if TYPE_CHECKING:
    import numpy as np


class LocalJudge:
    """Judges with a transformers model that the caller has loaded.

    Args:
        model: a causal language model (``forward(input_ids, past_key_values=..., use_cache=True)``).
        tokenizer: its tokenizer; a chat template is used if it has one.
        name: what the judge is called in reports. Stored judgements know it by name and a sample of its weights, so
            that those of a model since retrained are not taken for its own.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "local") -> None:
        model_id = f"{name}@{_fingerprint(model)}"
        self.spec = JudgeSpec(name=name, kind="local", model=model_id, method="exact", concurrency=1)
        self.model, self.tokenizer = model, tokenizer
        self.window = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.texts = _token_texts(tokenizer, model.config.vocab_size)
        self._read: _NextToken | None = None

    def ask(self, question: Question, seed: int = 0) -> Verdict:
        """The expected score under the model's exact probabilities; one pass over the prompt, and one per digit.

        A question longer than the model's window is not cut; the verdict says `prompt too long`.
        """
        ids = self._encode(question.prompt, question.form)
        if len(ids) + 4 > self.window:
            return Verdict("exact", problem="prompt too long", prompt_tokens=len(ids))
        self._read = _NextToken(self.model, ids, self._read)
        weights = score_probabilities(self._read, self.texts, question.scores)
        score, probabilities, outside = expected_score(weights)
        problem = None if score is not None else "no score"
        return Verdict("exact", score, probabilities, outside, problem, prompt_tokens=len(ids))

    def write(self, prompt: str, max_tokens: int = 512) -> str:
        """Write free text, greedily."""
        import torch

        ids = torch.tensor([self._encode(prompt, "")], device=self.model.device)
        with torch.no_grad():
            out = self.model.generate(ids, max_new_tokens=max_tokens, do_sample=False)
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()

    def _encode(self, prompt: str, form: str) -> list[int]:
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + form
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer(f"{prompt}\n\n{form}" if form else prompt)["input_ids"]


class _NextToken:
    """Next-token probabilities after a prompt and short paths behind it.

    The prompt is read once, and what it shares with the beginning of the prompt before it is not read again:
    questions about one reply differ only in their last lines.
    """

    def __init__(self, model: Any, ids: Sequence[int], before: _NextToken | None = None) -> None:
        import torch

        self.model, self.ids = model, list(ids)
        cache, known = None, 0
        if before is not None and _can_be_shortened(before.cache):
            cache, known = before.cache, _shared(before.ids, self.ids[:-1])
            cache.crop(known - len(before.ids))  # a negative number: how many tokens to forget
        with torch.no_grad():
            prompt = torch.tensor([self.ids[known:]], device=model.device)
            out = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.first = out.logits
        self.cache: Any = out.past_key_values

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        import numpy as np
        import torch

        if list(paths) == [()]:
            return _softmax(self.first)
        rows: dict[Path, np.ndarray] = {}
        for length in {len(path) for path in paths}:
            same = [path for path in paths if len(path) == length]
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(len(same))
            steps = torch.tensor(same, device=self.model.device)
            with torch.no_grad():
                out = self.model(input_ids=steps, past_key_values=cache, use_cache=True, logits_to_keep=1)
            rows.update(zip(same, _softmax(out.logits), strict=True))
        return np.stack([rows[path] for path in paths])


def _fingerprint(model: Any) -> str:
    """Hash of the first values of every weight: cheap for any size, and different after any training."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        values = [] if weight.is_meta else weight.detach().flatten()[:64].float().tolist()
        digest.update(repr((name, tuple(weight.shape), values)).encode())
    return digest.hexdigest()[:12]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _can_be_shortened(cache: Any) -> bool:
    """Whether every layer keeps all its keys (no sliding window, no recurrent state)."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _softmax(logits: Any) -> np.ndarray:
    return logits[:, -1].double().softmax(-1).cpu().numpy()


def _token_texts(tokenizer: Any, size: int) -> list[str]:
    """Text of each token with its leading blank kept; special tokens and padding rows are empty."""
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    texts = []
    for index, name in enumerate(names):
        if index in special or name is None:
            texts.append("")
        elif "▁" in name:  # SentencePiece: decoding a single token would drop the blank
            texts.append(name.replace("▁", " "))
        else:
            texts.append(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    return texts + [""] * (size - len(texts))
