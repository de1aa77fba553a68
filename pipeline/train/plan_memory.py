"""What a training step needs, from a model's configuration alone: bytes of every kind, and arithmetic.

The model is built on torch's ``meta`` device, so it has every shape and no weight, for any architecture that
transformers knows; peft puts the recipe's LoRA on it. What the forward pass keeps for the backward pass is counted by
running it on fake tensors (shapes and dtypes, no data) and watching what autograd saves, once with one layer and once
with two; all further layers are like the second. The formulas for the rest stand in docs/planning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.model import hub_errors

_LINEAR = (torch.nn.Linear, Conv1D)
_FLASH = "gonggam_plan"
CHUNK = 1024  # positions whose softmax the trainers hold in float32 at a time


@dataclass(frozen=True)
class Setting:
    """How a step is run.

    Attributes:
        rows, length: shape of a batch of token ids.
        positions: how many of them get logits, over the whole batch.
        masked: whether the batch carries a padding mask (a packed batch does not).
        dtype: of the weights.
        mixed: of the arithmetic, where that is not done in ``dtype``.
        quantization: of the frozen weights: none, nf4 or int8.
        optim: name of the optimiser, as TrainingArguments has it.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        adapters: LoRA adapters held (2 for DPO on an adapter: the one trained and its frozen twin).
        shards: GPUs over which weights, gradients and optimiser are split (FSDP2, ZeRO-3).
    """

    rows: int
    length: int
    positions: int
    masked: bool = False
    dtype: torch.dtype = torch.bfloat16
    mixed: torch.dtype | None = None
    quantization: str = "none"
    optim: str = "adamw_torch_fused"
    checkpointing: bool = False
    adapters: int = 1
    shards: int = 1


class Shape:
    """A causal language model, with LoRA or to be trained whole, without its weights.

    Args:
        config: the model's configuration.
        lora: keyword arguments of `peft.LoraConfig`; None trains all weights.
        attn_implementation: as the recipe has it; None stands for sdpa.
    """

    def __init__(
        self, config: PretrainedConfig, lora: Mapping[str, Any] | None, attn_implementation: str | None = None
    ) -> None:
        self.config, self.lora, self.attention = config, lora, attn_implementation
        self._measured: dict[tuple[Any, ...], tuple[int, int]] = {}
        model = self._model(config, torch.float32)
        self.parameters = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        base = _bare(model)
        head = base.get_output_embeddings()
        # peft wraps a target layer and keeps it as ``base_layer``; its own matrices are linear layers too.
        inner = {n: m for n, m in base.named_modules() if isinstance(m, _LINEAR) and ".lora_" not in n}
        self.linears = [(m.weight.numel(), m.weight.shape) for m in inner.values() if m is not head]
        self.linear = sum(n for n, _ in self.linears)
        self.head = head.weight.numel()
        self.vocabulary, self.width = head.weight.shape[0], head.weight.shape[1]
        self.layers = int(config.num_hidden_layers)

    def weights(self, dtype: torch.dtype, quantization: str = "none") -> int:
        """Bytes of the frozen weights.

        NF4 with double quantisation (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): half a byte a weight, one
        byte for each 64 weights, four for each 256 of those. int8: a byte a weight and four for each output.
        Embeddings, norms, biases and the output head stay in ``dtype``.
        """
        if quantization == "none":
            return self.parameters * dtype.itemsize
        kept = (self.parameters - self.linear) * dtype.itemsize
        return kept + sum(_quantized(n, shape, quantization) for n, shape in self.linears)

    def trained_dtype(self, setting: Setting) -> torch.dtype:
        """peft keeps LoRA in float32; TRL turns it to bfloat16 where the base is quantised."""
        if self.lora is None:
            return setting.dtype
        return torch.bfloat16 if setting.quantization != "none" else torch.float32

    def memory(self, setting: Setting) -> dict[str, int]:
        """Bytes at the peak of a step: weights, adapters, gradients, optimiser, activations, logits."""
        size = self.trained_dtype(setting).itemsize
        whole = self.weights(setting.dtype, setting.quantization)
        found = {
            "weights": whole // setting.shards,
            "adapters": 0 if self.lora is None else self.trainable * size * setting.adapters // setting.shards,
            "gradients": self.trainable * size // setting.shards,
            "optimizer": round(self.trainable * optimizer_bytes(setting.optim, size) / setting.shards),
        }
        if setting.shards > 1:
            # Gathered for use: what is outside of the layers, the layer at work and the one that is fetched meanwhile.
            share = (self.parameters - self.linear + 2 * self.linear / self.layers) / self.parameters
            found["gathered"] = round(whole * share * (1 - 1 / setting.shards))
        first, further = self.activations(setting)
        # Logits and their gradient, which comes in pieces and is put together; one piece in float32.
        width = (setting.mixed or setting.dtype).itemsize
        logits = setting.positions * self.vocabulary * width * (2 + (setting.positions > CHUNK))
        logits += min(setting.positions, CHUNK) * self.vocabulary * 12
        if setting.checkpointing:
            kept = setting.rows * setting.length * self.width * setting.dtype.itemsize * self.layers
            # A layer is computed again when the logits are gone already: whichever is larger makes the peak.
            found |= {"activations": kept + max(0, further - logits), "logits": logits}
        else:
            found |= {"activations": first + further * (self.layers - 1), "logits": logits}
        return found

    def activations(self, setting: Setting) -> tuple[int, int]:
        """Bytes that autograd keeps up to the output head: of a model of one layer, and of each further layer."""
        key = (setting.rows, setting.length, setting.masked, setting.dtype, setting.mixed, self.trained_dtype(setting))
        if key not in self._measured:
            one, two = (self._saved(count, setting) for count in (1, 2))
            self._measured[key] = one, two - one
        return self._measured[key]

    def flops(
        self, tokens: int, squares: int, positions: int, *, checkpointing: bool = False, passes: int = 0
    ) -> float:
        """Floating-point operations of training on a set of rows once, a multiplication and an addition as 2.

        Weights: 2 forward, 2 for the gradient of their input, 2 if computed again, 2 if they are trained. Attention as
        in PaLM, appendix B (https://arxiv.org/abs/2204.02311): 4 x length x width a token and layer forward, twice that
        back.

        Args:
            tokens: tokens of all rows, padding included.
            squares: sum over rows of the square of their length.
            positions: those that get logits.
            checkpointing: see `Setting`.
            passes: forward passes without gradient beside the one that is trained (1 for DPO's reference).
        """
        forward = 1 + int(checkpointing) + passes
        trained = int(self.lora is None)
        linear = 2 * self.linear * tokens * (forward + 1 + trained)
        lora = 0 if trained else 2 * self.trainable * tokens * (forward + 2)
        attention = 4 * self.width * self.layers * squares * (forward + 2)
        head = 2 * self.head * positions * (2 + passes + trained)
        return float(linear + lora + attention + head)

    def _model(self, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
        attention = self.attention or "sdpa"
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
            if self.lora is None:
                return model.train()
            wanted = LoraConfig(task_type="CAUSAL_LM", **self.lora)
            return get_peft_model(model, wanted, low_cpu_mem_usage=True).train()

    def _saved(self, layers: int, setting: Setting) -> int:
        """Bytes of what autograd saves in a forward pass through ``layers`` layers, weights left out."""
        config = deepcopy(self.config)
        config.num_hidden_layers = layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = kinds[:layers]
        model = self._model(config, setting.dtype)
        size = self.trained_dtype(setting)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(size)
        base = _bare(model)
        if not setting.masked and self.attention in (None, "sdpa", "flash_attention_2"):
            AttentionInterface.register(_FLASH, _flash)
            base.config._attn_implementation = _FLASH
        return _count_saved(base.base_model, setting)


def _bare(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def config_of(base: str, **options: Any) -> PretrainedConfig:
    """The configuration of a model: a folder, a hub id, or the path of a ``config.json``.

    Raises:
        UserError: it can be found nowhere.
    """
    path = Path(base)
    if path.is_file():
        return AutoConfig.from_pretrained(path.parent if path.name == "config.json" else path, **options)
    with hub_errors(base):
        return AutoConfig.from_pretrained(base, **options)


def optimizer_bytes(optim: str, size: int) -> float:
    """Bytes an optimiser keeps for a trained parameter of ``size`` bytes; an unknown one counts as AdamW."""
    if "8bit" in optim:
        return 1 + 4 / 256 if "lion" in optim else 2 + 8 / 256
    if optim.startswith("sgd"):
        return 0
    if "adafactor" in optim:
        return 0.1 * size  # a row and a column for each matrix
    return size if "lion" in optim or "rmsprop" in optim or "adagrad" in optim else 2 * size


def _quantized(weights: int, shape: torch.Size, quantization: str) -> int:
    if quantization == "int8":
        return weights + 4 * shape[0]
    blocks = -(-weights // 64)
    return -(-weights // 2) + blocks + 4 * -(-blocks // 256)


def _count_saved(body: torch.nn.Module, setting: Setting) -> int:
    """Run ``body`` on fake tensors and add up the distinct storages that autograd saves."""
    seen: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode():
        state = {
            name: torch.empty(value.shape, dtype=value.dtype, requires_grad=value.requires_grad)
            for name, value in [*body.named_parameters(), *body.named_buffers()]
        }
        own = {value.untyped_storage()._cdata for value in state.values()}

        def pack(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in own:
                seen[storage._cdata] = storage
            return value

        batch: dict[str, Any] = {"input_ids": torch.zeros(setting.rows, setting.length, dtype=torch.long)}
        if setting.masked:
            batch["attention_mask"] = torch.ones(setting.rows, 1, setting.length, setting.length, dtype=torch.bool)
        precision = setting.mixed or setting.dtype
        mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), mixed:
            torch.func.functional_call(body, state, (), {**batch, "use_cache": False})
        return sum(storage.nbytes() for storage in seen.values())


class _Flash(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: inputs, output, and the log of the sum of exponentials (fp32)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The shape of the output; the figures in it mean nothing."""
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shapes alone."""
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


def _flash(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    return _Flash.apply(query, key, value).transpose(1, 2).contiguous(), None
