"""Base model, tokenizer and adapters, from a run folder, a model folder or a hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from pipeline.prompt import template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.recipe import Recipe
    from pipeline.recipe.sections import ModelOptions
    from pipeline.run import Run


def base_of(recipe: Recipe, run: Run) -> str:
    """Where the base model lies: what the recipe names, else the run's own tiny base."""
    return recipe.model.base if recipe.model and recipe.model.base else str(run.stage("tiny") / "model")


def load_tokenizer(base: str, *, settings: ModelOptions | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, with a pad token that is not EOS.

    Were pad and EOS the same token, masking the padding would mask the end of every reply, and the model would never
    learn to stop. A tokenizer without a pad token of its own takes an unused or unknown token for it.

    Raises:
        UserError: the model cannot be found, or no token can serve as padding.
    """
    from transformers import AutoTokenizer

    with hub_errors(base):
        tokenizer = AutoTokenizer.from_pretrained(base, **_source(settings))
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
    arguments: dict[str, Any] = {"dtype": dtype, **_source(settings)}
    if settings and settings.quantization != "none":
        arguments["quantization_config"] = _quantization(settings.quantization, dtype)
    if settings and settings.attn_implementation:
        arguments["attn_implementation"] = settings.attn_implementation
    if on_gpu:
        from accelerate import PartialState

        arguments["device_map"] = {"": PartialState().local_process_index}
    with hub_errors(base):
        return AutoModelForCausalLM.from_pretrained(base, **arguments)


def _source(settings: ModelOptions | None) -> dict[str, Any]:
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


@contextmanager
def hub_errors(wanted: str) -> Iterator[None]:
    """Turn the many ways in which a model can be out of reach into one line that says what to do."""
    check_base(wanted)
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
            "check the name and the network, or download it elsewhere and set model.base to its folder",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
