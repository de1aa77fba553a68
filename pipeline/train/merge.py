"""An adapter merged into its base: plain safetensors with a proof that they say the same, a model card, and GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from gonggam.errors import UserError
from gonggam.files import publishing, write_json, write_text
from pipeline.identity import check_identity
from pipeline.model import load_model, load_tokenizer, policies
from pipeline.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.model import Policy
    from pipeline.recipe import Recipe
    from pipeline.run import Run

# Largest difference of logits, as a share of the largest logit. Merging rounds the weights to their dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
CONVERTER = "convert_hf_to_gguf.py"


def merge(
    recipe: Recipe, run: Run, out: Path, *, stage: str | None = None, tolerance: float | None = None
) -> dict[str, Any]:
    """Merge the adapter of ``stage`` (by default the run's last) into its base; leaves a Hugging Face folder ``out``.

    The logits of the written files are compared with those of base and adapter on fixed prompts
    (``merge_prompts.txt``); the folder appears only if they agree.

    Returns:
        the proof: dtype, prompts, difference (share of the largest logit), tolerance, stage.

    Raises:
        UserError: no such adapter; ``out`` holds other files; the logits differ by more than ``tolerance``.
    """
    found = policies(recipe, run)
    chosen = _stage(found, stage, run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("this place is taken", "name a new folder with --out", file=out)
    from peft import PeftModel

    base = found[chosen].model
    settings = recipe.model.model_copy(update={"quantization": "none"})
    tokenizer = load_tokenizer(base, settings=settings)
    texts = Path(__file__).with_name("merge_prompts.txt").read_text("utf-8").splitlines()
    prompts = [encode(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    whole = load_model(base, settings=settings)
    dtype = whole.dtype
    allowed = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) if tolerance is None else tolerance
    if adapter := found[chosen].adapter:
        check_identity(whole, adapter)
    model = PeftModel.from_pretrained(whole, adapter) if adapter else whole
    wanted = _logits(model, prompts)
    with publishing(out) as aside:
        (model.merge_and_unload() if adapter else model).save_pretrained(str(aside))
        tokenizer.save_pretrained(aside)
        del model, whole
        difference = _difference(wanted, _logits(load_model(str(aside), settings=_plain(settings, dtype)), prompts))
        if not difference <= allowed:
            raise UserError(
                f"the merged model's logits differ from the adapter's by {difference:.2e} of the largest logit",
                f"allowed is {allowed:.0e}: merge in float32 (model.dtype=float32) or raise --tolerance",
            )
        proof = {
            "stage": chosen,
            "dtype": str(dtype).removeprefix("torch."),
            "prompts": len(prompts),
            "difference": difference,
            "tolerance": allowed,
        }
        write_text(aside / "README.md", model_card(recipe, run, proof))
        write_json(aside / "merge.json", proof)
    return proof


def model_card(recipe: Recipe, run: Run, proof: dict[str, Any]) -> str:
    """The model card of a merged model, as Markdown."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("model_card.md.j2").read_text("utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    resolved = recipe.resolved()
    trained = {name: resolved[name] for name in ("model", "tiny", "sft", "dpo") if name in resolved}
    return environment.from_string(template).render(
        name=recipe.name,
        base=recipe.model.base or "a tiny base made for demonstration",
        stage=proof["stage"],
        whole=recipe.sft is not None and recipe.sft.lora is None,
        quantization=recipe.model.quantization,
        sources=recipe.section("prepare").get("sources", []),
        data=_data(run),
        metrics=_metrics(run),
        recipe=yaml.safe_dump(trained, allow_unicode=True, sort_keys=False, width=100),
        proof=proof,
    )


def find_converter() -> Path:
    """llama.cpp's converter: on the path, or in the folder that the environment variable LLAMA_CPP names.

    Raises:
        UserError: it is in neither place.
    """
    found = shutil.which(CONVERTER)
    places = [Path(found)] if found else []
    places += [Path(os.environ["LLAMA_CPP"]) / CONVERTER] if "LLAMA_CPP" in os.environ else []
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"llama.cpp's {CONVERTER} was not found", "clone llama.cpp and set LLAMA_CPP to its folder, or leave --gguf out"
    )


def to_gguf(folder: Path, converter: Path, *, outtype: str = "f16") -> Path:
    """Convert a merged folder with llama.cpp's converter; returns the file.

    Raises:
        UserError: the converter failed (its last line is told).
    """
    file = folder / f"{folder.name}-{outtype}.gguf"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(file), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"llama.cpp's converter failed: {last}", "see whether it knows this architecture", file=folder)
    return file


def check_hub() -> None:
    """Refuse an upload that cannot succeed, before the work is done.

    Raises:
        UserError: there is no token for the hub, or the environment forbids the network.
    """
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise UserError("nothing can be uploaded while HF_HUB_OFFLINE is set", "unset it, or leave push_to_hub out")
    if get_token() is None:
        raise UserError("no token for the model hub", "log in first: hf auth login, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload a merged folder with its model card to the model hub; returns the address of the repository.

    Args:
        private: for a repository that is made now; one that is there stays as it is.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        what = f"the hub did not take {repository} ({reason})"
        raise UserError(what, "check its name and your rights to it") from error
    return str(address)


def _stage(found: Mapping[str, Policy], wanted: str | None, run: Run) -> str:
    there = [name for name in found if name != "base"]
    if not there:
        raise UserError("no finished adapter in this run", "train one first: gonggam run RECIPE", file=run.folder)
    if wanted and wanted not in there:
        raise UserError(f"no finished adapter of stage {wanted!r}", f"there is: {', '.join(there)}", file=run.folder)
    return wanted or there[-1]


def _plain(settings: Any, dtype: torch.dtype) -> Any:
    """The recipe's settings for the merged folder: its own files, in the dtype they were written in."""
    return settings.model_copy(update={"dtype": str(dtype).removeprefix("torch."), "revision": None})


@torch.inference_mode()
def _logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    model.eval()
    return [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in prompts]


def _difference(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    largest = max(float(logits.abs().max()) for logits in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True)) / largest


def _data(run: Run) -> dict[str, dict[str, int]]:
    kinds = ("rows", "pairs", "tokens", "supervised_tokens")
    facts = {}
    for name in ("sft", "dpo"):
        if manifest := run.manifest(name):
            metrics = manifest["metrics"]
            facts[name] = {kind.replace("_", " "): metrics[kind] for kind in kinds if metrics.get(kind) is not None}
    return facts


def _metrics(run: Run) -> dict[str, str]:
    """What the run measured on held-out data."""
    found: dict[str, str] = {}
    if (manifest := run.manifest("sft")) and (value := manifest["metrics"].get("validation_perplexity")):
        found["validation perplexity before and after SFT"] = f"{value['before']:.2f}, {value['after']:.2f}"
    if (manifest := run.manifest("dpo")) and (value := manifest["metrics"].get("held_out")):
        found["held-out preference pairs ranked rightly"] = f"{value['accuracy']:.1%} of {value['pairs']}"
        found |= {f"warning {number}": text for number, text in enumerate(value.get("warnings", ()), 1)}
    if manifest := run.manifest("eval"):
        for name, value in manifest["metrics"].get("perplexity", {}).items():
            found[f"test perplexity, {name}"] = f"{value:.2f}"
    return found
