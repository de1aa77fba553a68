"""The eval stage: held-out perplexity and answers of base, SFT and DPO, G-eval, and one report of the whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import EvalOptions, LocalJudge, evaluate, load_judge
from eval.collect import check_options
from pipeline.chat.backends import Request, Settings, collect
from pipeline.chat.local import TransformersBackend, load_local
from pipeline.chat.options import ChatOptions
from pipeline.model import base_of, using
from pipeline.prompt import with_system
from pipeline.story import sections
from pipeline.train.data import conversations, sft_rows
from pipeline.train.measure import perplexity, reply_logprobs
from pipeline.yardsticks import checks, held_out_pairs, likeness, pair_makers

if TYPE_CHECKING:
    from pipeline.run import Run
    from pipeline.stages import Context

Progress = Callable[[int, int], None]
_BATCH = 8


def run_eval(context: Context) -> dict[str, Any]:
    """Score every policy of the run on the test split; leaves the reports in the stage's folder.

    Returns:
        metrics: perplexity of the human replies under each policy, and the sample answers.

    Raises:
        UserError: nothing to evaluate, or a judge that cannot be had.
    """
    options, makers = context.recipe.eval, pair_makers(context.prepared)
    check_options(options, makers)
    settings = context.recipe.model
    adapters = {s: context.run.stage(s) / "adapter" for s in ("sft", "dpo") if context.run.manifest(s)}
    backend = load_local(base_of(context.recipe, context.run), adapters=adapters, settings=settings)
    policies = {"base": "none", **{name: name for name in adapters}}
    perplexities = {
        name: perplexity(_logprobs(context, backend, adapter, context.progress)) for name, adapter in policies.items()
    }
    items = [_item(row) for row in _spread(conversations(context.prepared, "test"), options.items)]
    replies = {name: _answers(context, backend, adapter, items) for name, adapter in policies.items()}
    with using(backend.model, "none"):
        results = evaluate(
            items,
            replies,
            options,
            judge=_judges(options, backend),
            out=context.folder,
            progress=context.progress,
            pairs=held_out_pairs(context.prepared),
            pair_judge=makers,
            checks=checks(context.recipe.chat),
            cache=verdicts_of(context.run),
            **likeness(context.recipe, context.run),
            extra_sections=sections(context.run, context.recipe, perplexities),
        )
    backend.close()
    samples = [
        {"question": item["messages"][-1]["content"], "answers": {name: replies[name][i] for name in replies}}
        for i, item in enumerate(items[: options.samples])
    ]
    return {"perplexity": perplexities, "samples": samples, "judge_trusted": results["judge_trusted"]}


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
    settings = Settings(
        max_new_tokens=context.recipe.eval.max_new_tokens,
        temperature=0,
        repetition_penalty=chat.repetition_penalty,
        adapter=adapter,
    )
    requests = [Request(with_system(item["messages"], context.system), settings) for item in items]
    return [collect(stream).text for stream in backend.stream(requests)]


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows at even distances, so that a sorted file gives all categories a chance."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows


def _item(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "category": row.get("category"),
        "messages": row["messages"][:-1],
        "reference": row["messages"][-1]["content"],
    }


def _judges(options: EvalOptions, backend: TransformersBackend) -> list[Any] | None:
    """The judges the recipe names; ``local`` is the run's own base model, in process."""
    named = options.judge if isinstance(options.judge, list) else [options.judge] if options.judge else []
    local = LocalJudge(backend.model, backend.tokenizer, name=f"local:{Path(backend.name).name}")
    return [local if judge == "local" else load_judge(judge) for judge in named]
