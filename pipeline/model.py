"""Base model, tokenizer and adapters, from a run folder, a model folder or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from pipeline.prompt import template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.recipe import Recipe
    from pipeline.recipe.sections import ModelOptions
    from pipeline.run import Run

_FETCH = "check the name and the network, or download it elsewhere and give the path of its folder"
_HUB_PATIENCE_S = 5.0


def base_of(recipe: Recipe, run: Run) -> str:
    """Where the base model lies: what the recipe names, else the run's own tiny base."""
    return recipe.model.base if recipe.model and recipe.model.base else str(run.stage("tiny") / "model")


@dataclass(frozen=True)
class Policy:
    """One of the models of a run.

    Attributes:
        model: folder or hub id of whole weights.
        adapter: the LoRA adapter on them; None for the weights as they are.
    """

    model: str
    adapter: Path | None = None


def policy(recipe: Recipe, run: Run, name: str) -> Policy:
    """The model that a recipe calls ``base``, ``sft`` or ``dpo``, whether it is there yet or not."""
    if name == "sft" and recipe.sft and recipe.sft.lora is None:
        return Policy(str(run.stage("sft") / "model"))
    start = recipe.dpo.reference if name == "dpo" and recipe.dpo else "base"
    return Policy(
        policy(recipe, run, start).model if start != "base" else base_of(recipe, run),
        None if name == "base" else run.stage(name) / "adapter",
    )


def policies(recipe: Recipe, run: Run) -> dict[str, Policy]:
    """The models of a run in the order they came to be: ``base``, then ``sft`` and ``dpo`` as far as finished."""
    names = ["base", *(stage for stage in ("sft", "dpo") if run.manifest(stage))]
    return {name: policy(recipe, run, name) for name in names}


def adapters_on(model: str, found: Mapping[str, Policy]) -> dict[str, Path | None]:
    """The trained policies that share the weights ``model``, as `pipeline.chat.local.load_local` takes them."""
    return {name: one.adapter for name, one in found.items() if one.model == model and name != "base"}


def load_tokenizer(base: str, *, settings: ModelOptions | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, with a pad token that is not EOS.

    Were pad and EOS the same token, masking the padding would mask the end of every reply, and the model would never
    learn to stop. A tokenizer without a pad token of its own takes an unused or unknown token for it.

    Raises:
        UserError: the model cannot be found, or no token can serve as padding.
    """
    from pipeline.tokenizer_files import read_tokenizer

    with hub_errors(base):
        tokenizer = read_tokenizer(base, **source_of(settings))
    if settings and settings.chat_template:
        tokenizer.chat_template = template(settings.chat_template)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", tokenizer.unk_token):
        if token in vocabulary and token != tokenizer.eos_token:
            return token
    raise UserError(
        f"the tokenizer of {tokenizer.name_or_path} has no token that could serve as padding beside EOS",
        "use a base model whose tokenizer has a <pad> or <unk> token",
    )


def load_model(base: str, *, settings: ModelOptions | None = None) -> PreTrainedModel:
    """The causal language model ``base`` on the machine's device, in the recipe's dtype and quantisation.

    Args:
        base: a model folder or hub id.
        settings: the recipe's ``model:`` section, or None for the defaults (fp32 on CPU, bf16 on GPU).

    Raises:
        UserError: the model cannot be found.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would tear our own apart
    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    chosen = settings.dtype if settings else "auto"
    dtype = getattr(torch, chosen) if chosen != "auto" else torch.bfloat16 if bf16 else torch.float32
    arguments: dict[str, Any] = {"dtype": dtype, **source_of(settings)}
    if settings and settings.quantization != "none":
        arguments["quantization_config"] = _quantization(settings.quantization, dtype)
    if settings and settings.attn_implementation:
        arguments["attn_implementation"] = settings.attn_implementation
    if on_gpu:
        from accelerate import PartialState

        arguments["device_map"] = {"": PartialState().local_process_index}
    with hub_errors(base):
        return _trainable_after_measuring(AutoModelForCausalLM.from_pretrained(base, **arguments))


def _trainable_after_measuring(model: PreTrainedModel) -> PreTrainedModel:
    """Keep 4-bit layers differentiable on processors with AVX512-BF16.

    There bitsandbytes 0.50 repacks the weights at the first forward pass in eval mode, for good, into a form that has
    no backward: a model measured before training would train on gradients that silently lack these layers.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model


def source_of(settings: ModelOptions | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told beside the name: which revision, and whether to run code that comes along."""
    if settings is None:
        return {}
    return {"revision": settings.revision or "main", "trust_remote_code": settings.trust_remote_code}


@contextmanager
def using(model: PreTrainedModel, adapter: str) -> Iterator[None]:
    """Let a model answer as one of its named adapters, or as the bare base for ``none``."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        yield
    elif adapter == "none":
        with model.disable_adapter():
            yield
    else:
        before = model.active_adapter
        model.set_adapter(adapter)
        try:
            yield
        finally:
            model.set_adapter(before)


def _quantization(kind: str, dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_base(wanted: str) -> None:
    """Refuse a base that is written as a path but is no folder, before any work is done.

    Raises:
        UserError: there is no such folder.
    """
    path = Path(wanted)
    if (path.is_absolute() or wanted.startswith(("./", "../", "~"))) and not path.expanduser().is_dir():
        raise UserError("model folder not found", "give the path of a folder that holds config.json", file=wanted)


def check_hub(wanted: str) -> None:
    """Ask once, and briefly, whether the model hub can be reached; its own client tries for minutes.

    Nothing is asked for a folder, a model that was fetched before, or where HF_HUB_OFFLINE is set.

    Raises:
        UserError: a model that would have to be fetched cannot be.
    """
    import httpx
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if constants.HF_HUB_OFFLINE or Path(wanted).is_dir():
        return
    try:
        if isinstance(try_to_load_from_cache(wanted, "config.json"), str):
            return
        httpx.head(constants.ENDPOINT, timeout=_HUB_PATIENCE_S)
    except HFValidationError:  # no name of a model: the client says so itself
        return
    except httpx.HTTPError as error:
        raise UserError(
            f"the model {wanted} is no folder here, and the model hub cannot be reached ({type(error).__name__})",
            _FETCH,
        ) from error


@contextmanager
def hub_errors(wanted: str) -> Iterator[None]:
    """Turn the many ways in which a model can be out of reach into one line that says what to do."""
    check_base(wanted)
    check_hub(wanted)
    path = Path(wanted)
    try:
        yield
    except (OSError, ValueError) as error:
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError("no model in this folder (config.json is missing)", file=wanted) from error
        if path.is_dir():
            raise UserError(f"the model cannot be loaded ({_first_line(error)})", file=wanted) from error
        raise UserError(
            f"the model {wanted} is neither a folder here nor could its config.json, tokenizer and weights be fetched "
            f"from the model hub ({_first_line(error)})",
            _FETCH,
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
