"""Write into every shipped recipe what `gonggam plan` expects of it, or check that it stands there.

    python bench/recipes.py [--check]

The lines after ``# Expected`` are replaced: memory at the peak and time on the GPU that the recipe is for. Rows are
the shipped dialogues and their pairs, one token a character, so that no tokenizer is needed. ``--check`` changes
nothing and exits with 1 if a recipe says something else.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from record import ROOT, record

GPUS = {
    "eeve-10.8b": "a100-80gb",
    "eeve-10.8b-nf4": "rtx-4090",
    "eeve-2.8b": "rtx-4090",
    "kullm3": "a100-80gb",
    "kullm-polyglot-12.8b": "a100-80gb",
    "llama-3-8b-instruct": "a100-80gb",
    "phi-3-mini": "rtx-4090",
    "qwen3-0.6b": "l4",
}
BLOCK = re.compile(r"^# Expected.*\n(?:#  .*\n)*", re.MULTILINE)


def expected(name: str, prepared: Path) -> str:
    """The comment lines of a recipe."""
    from pipeline.chat.options import ChatOptions
    from pipeline.prompt import system_prompt
    from pipeline.recipe import load_recipe
    from pipeline.train.plan import Planner
    from pipeline.train.plan_machine import GIB, gpu_named

    recipe, gpu = load_recipe(ROOT / f"recipes/{name}.yaml"), gpu_named(GPUS[name])
    planner = Planner(recipe, prepared, system=system_prompt((recipe.chat or ChatOptions()).system))
    lines = [f"# Expected on one {gpu.name}, by bench/recipes.py, which asks `gonggam plan` (not measured):"]
    for stage in ("sft", "dpo"):
        plan = planner.stage(stage, gpu)
        if not plan.fits:
            raise SystemExit(f"{name}: {stage} does not fit {gpu.name} ({plan.peak / GIB:.1f} GiB)")
        minutes = plan.seconds / plan.epochs / plan.rows.tokens * 1e6 / 60
        weights = plan.memory["weights"] / GIB
        lines.append(
            f"#   {stage}  {plan.peak / GIB:.1f} of {gpu.usable / GIB:.1f} GiB at the peak, {weights:.1f} of them"
            f" weights; {minutes:.0f} min for a million tokens"
        )
    lines.append(f"#   {plan.parameters / 1e9:.2f}e9 parameters, and {plan.trainable / 1e6:.0f} million of LoRA")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Go through the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a recipe differs")
    asked = parser.parse_args()
    import data_prep

    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        data_prep.prepare([{"reader": "counsel_ko"}], prepared)
        for name in GPUS:
            path = ROOT / f"recipes/{name}.yaml"
            text, lines = path.read_text("utf-8"), expected(name, prepared)
            print(f"{name}\n{lines}")
            changed, found = BLOCK.subn(lambda _: lines, text)  # noqa: B023
            wrong += [name] * (changed != text or found != 1)
            if not asked.check:
                path.write_text(changed, "utf-8")
    record("recipes", {"differing": len(wrong) if asked.check else 0}, ["torch", "transformers", "peft"])
    if asked.check and wrong:
        sys.exit(f"these recipes say something else: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
