"""For administrators: how much there is, without a word of what it says."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.serve.native.access import OWN, Admin, TheStore
from pipeline.serve.store.records import Counts

router = APIRouter(prefix="/admin", tags=["administration"])


@router.get("/counts", responses=OWN)
def counts(who: Admin, store: TheStore) -> Counts:
    """Counts of accounts, rooms, exchanges, risks and ratings; 404 for everybody but administrators."""
    return store.insight.counts()
