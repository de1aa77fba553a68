"""Optional second look at the candidates by a cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gonggam.errors import UserError

Reranker = Callable[[str, Sequence[str]], Sequence[float]]


def load_reranker(name_or_path: str) -> Reranker:
    """A function ``(query, texts) -> scores`` around a sentence-transformers ``CrossEncoder``.

    Raises:
        UserError: it cannot be loaded.
    """
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the reranker {name_or_path} could not be loaded ({type(error).__name__})",
            "check the name and the network, give the path of a local folder, or leave `reranker` out",
        ) from error
    return lambda query, texts: model.predict([(query, text) for text in texts]).tolist()
