"""Refusals of the native API: a code for programs, a sentence for people and a status, all in texts.yaml."""

from __future__ import annotations

from pipeline.serve.errors import ApiError
from pipeline.serve.texts import texts


class Refused(ApiError):
    """A request that is not carried out.

    Args:
        code: key under ``refused`` in texts.yaml.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, code: str, *, retry_after: int | None = None) -> None:
        known = texts()["refused"][code]
        super().__init__(known["status"], known["message"], code=code, retry_after=retry_after)
