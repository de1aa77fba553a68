"""Which base model an adapter belongs to: another of the same shape takes it without complaint and talks nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from gonggam.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "base.json"
_TENSORS, _VALUES = 8, 16


def identity(model: PreTrainedModel) -> dict[str, Any]:
    """The name of a bare base model, and a few values of its embedding and of its norms and biases.

    These stay as they are under 4- and 8-bit loading. A model whose weights are spread over processes has none to show.
    """
    flat = [(name, weight) for name, weight in model.named_parameters() if weight.dim() == 1 and weight.numel()]
    some = flat[:: max(1, len(flat) // _TENSORS)][:_TENSORS]
    embedding = model.get_input_embeddings().weight
    tensors = {"embedding": embedding, **dict(some)} if embedding.numel() else {}
    return {
        "base": model.name_or_path,
        "weights": {name: _spread(weight) for name, weight in tensors.items() if weight.is_floating_point()},
    }


def write_identity(folder: Path, found: dict[str, Any]) -> None:
    """Keep the identity of its base beside an adapter."""
    write_json(folder / FILE, found)


def check_identity(model: PreTrainedModel, adapter: Path) -> None:
    """Refuse an adapter that was trained on another base; one that does not say so is let through.

    Args:
        model: the bare base, no adapter on it yet; half precision and quantisation do not matter.

    Raises:
        UserError: the base's weights are not those that the adapter was trained on.
    """
    import torch

    if not (adapter / FILE).is_file():
        return
    made, here = read_json(adapter / FILE), identity(model)
    same = made["weights"].keys() == here["weights"].keys() and all(
        len(wanted) == len(found) and torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=2**-7, atol=1e-6)
        for wanted, found in ((made["weights"][name], here["weights"][name]) for name in made["weights"])
    )
    if made["weights"] and here["weights"] and not same:
        raise UserError(
            f"the adapter was made for another base model ({made['base']}) than {here['base']}",
            "name the base and revision that it was trained on, or train sft on this one",
            file=adapter,
        )


def _spread(weight: Any) -> list[float]:
    """Values at even distances."""
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].float().tolist()
