"""Another key for the memories on the disk: every file sealed anew, without a model or an embedder."""

from __future__ import annotations

import shutil
from pathlib import Path

from gonggam.errors import UserError
from gonggam.files import friendly_os_errors
from rag.log import ExchangeLog
from rag.mind import lock, sweep
from rag.seal import Seal


def reseal(root: str | Path, seal: Seal) -> int:
    """Seal every user's log and index anew, whatever they were stored with; returns how many users there are.

    Each file is whole at every moment: killed midway this can be run again, as long as the seal opens what both the
    old keys and the new one have sealed.

    Args:
        root: folder of a `rag.memory.MemoryStore`.

    Raises:
        UserError: some were sealed with a key that the seal does not have.
    """
    from rag.store import reseal as reseal_index

    root = Path(root)
    folders = sorted(root.glob("users/*/*"))
    with friendly_os_errors(root):
        for folder in folders:
            with lock(root, folder.name):
                sweep(folder)
                log, index = ExchangeLog(folder / "exchanges.jsonl", seal), folder / "index"
                if log.path.exists():
                    log.reseal()
                try:
                    if index.exists():
                        reseal_index(index, seal)
                except UserError:  # the log has it all: the index is built anew from it
                    shutil.rmtree(index)
    return len(folders)
