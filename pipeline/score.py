"""The eval stage: held-out perplexity and answers of base, SFT and DPO, G-eval, and one report of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import evaluate
from eval.collect import check_options, spread_out
from gonggam.progress import Progress
from pipeline.chat.backends import Settings, replies
from pipeline.chat.counselor import Counselor
from pipeline.chat.local import TransformersBackend, load_local
from pipeline.chat.options import ChatOptions
from pipeline.chat.sentiment import load_sentiments
from pipeline.degenerate import count_degenerate, degenerate_section
from pipeline.model import adapters_on, policies, using
from pipeline.prompt import with_system
from pipeline.recipe import required
from pipeline.referees import judges_of
from pipeline.rehearse import rehearse
from pipeline.story import sections
from pipeline.train.data import conversations, sft_rows
from pipeline.train.measure import perplexity, reply_logprobs
from pipeline.yardsticks import checks, held_out_pairs, likeness, pair_makers

if TYPE_CHECKING:
    from gonggam.page import Section
    from pipeline.run import Run
    from pipeline.stages import Context

_BATCH = 8


def run_eval(context: Context) -> dict[str, Any]:
    """Score every policy of the run on the test split; leaves the reports in the stage's folder.

    Returns:
        metrics: perplexity of the human replies under each policy, its degenerate answers, and the samples.

    Raises:
        UserError: nothing to evaluate, or a judge that cannot be had.
    """
    options, makers = required(context.recipe.eval), pair_makers(context.prepared)
    check_options(options, makers, context.recipe.model.base)
    items = [_item(row) for row in spread_out(conversations(context.prepared, "test"), options.items)]
    perplexities, replies, degenerate, backend = _ask(context, items)
    results = evaluate(
        items,
        replies,
        options,
        judges_of(options.judge, backend) or None,
        context.folder,
        context.progress,
        pairs=held_out_pairs(context.prepared),
        pair_judge=makers,
        checks=checks(context.recipe.chat),
        cache=verdicts_of(context.run),
        extra_sections=[
            *sections(context.run, context.recipe, perplexities),
            degenerate_section(degenerate),
            *_talks(context, backend),
        ],
        **likeness(context.recipe, context.run),
    )
    backend.close()
    samples = [
        {"question": item["messages"][-1]["content"], "answers": {name: replies[name][i] for name in replies}}
        for i, item in enumerate(items[: options.samples])
    ]
    return {
        "perplexity": perplexities,
        "degenerate": degenerate,
        "samples": samples,
        "judge_trusted": results["judge_trusted"],
    }


def _ask(
    context: Context, items: Sequence[dict]
) -> tuple[dict[str, float], dict[str, list[str]], dict[str, Any], TransformersBackend]:
    """Each policy's perplexity, answers and count of degenerate ones, and the base's open backend, which may judge.

    The caller closes it.
    """
    chat, degenerate = context.recipe.chat or ChatOptions(), dict[str, Any]()
    sentiments = load_sentiments(context.run.folder, chat)
    found = policies(context.recipe, context.run)
    perplexities, replies = dict.fromkeys(found, 0.0), {name: list[str]() for name in found}
    backend: TransformersBackend | None = None
    for model in dict.fromkeys(one.model for one in reversed(found.values())):  # the base comes last
        if backend:
            backend.close()
        backend = load_local(model, adapters=adapters_on(model, found), settings=context.recipe.model)
        for name in [name for name, one in found.items() if one.model == model]:
            weights = name if found[name].adapter else "none"
            perplexities[name] = perplexity(_logprobs(context, backend, weights, context.progress))
            adapter = "none" if name == "base" else name
            replies[name] = _answers(context, backend, adapter, items)
            degenerate[name] = count_degenerate(backend, chat, context.system, adapter=adapter, sentiments=sentiments)
    assert backend is not None  # there is always a base
    return perplexities, replies, {name: degenerate[name] for name in found}, backend


def _talks(context: Context, backend: TransformersBackend) -> list[Section]:
    """The talks of simulated people with the run's counsellor, where the recipe wants them."""
    if (options := required(context.recipe.eval).simulate) is None:
        return []
    one_base = len({one.model for one in policies(context.recipe, context.run).values()}) == 1
    bot = Counselor.load(context.run.folder, **({"backend": backend} if one_base else {}))
    out, cache = context.folder / "simulated", verdicts_of(context.run)
    return [rehearse(bot, out, options, context.recipe.name, cache=cache, progress=context.progress)]


def verdicts_of(run: Run) -> Path:
    """Where a run's judges' answers are kept: outside the stage, which starts empty when code or recipe changed."""
    return run.folder / "verdicts"


def _logprobs(
    context: Context, backend: TransformersBackend, adapter: str, progress: Progress | None
) -> list[tuple[float, int]]:
    """Log-probabilities of the human replies of the test split under one policy."""
    rows = sft_rows(backend.tokenizer, context.prepared, "test", system=context.system, max_length=backend.context)
    with using(backend.model, adapter):
        return reply_logprobs(backend.model, rows, batch_size=_BATCH, progress=progress)


def _answers(context: Context, backend: TransformersBackend, adapter: str, items: Sequence[dict]) -> list[str]:
    """What one policy itself answers, without gate, memory or fallback; greedy, so that a rerun says the same."""
    chat = context.recipe.chat or ChatOptions()
    longest = required(context.recipe.eval).max_new_tokens
    settings = Settings.of(chat, max_new_tokens=longest, temperature=0, adapter=adapter)
    talks = [with_system(item["messages"], context.system) for item in items]
    return [reply.text for reply in replies(backend, talks, settings)]


def _item(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "category": row.get("category"),
        "messages": row["messages"][:-1],
        "reference": row["messages"][-1]["content"],
    }
