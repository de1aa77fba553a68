"""Where training is told besides our own curves: TensorBoard's event files in the run folder, or W&B and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

from gonggam.errors import UserError


def checked(report_to: str | Sequence[str] | None) -> list[str]:
    """The trackers a recipe names with TRL's key ``report_to``, all of them installed.

    Raises:
        UserError: one is not.
    """
    named = [report_to] if isinstance(report_to, str) else list(report_to or ["none"])
    there = get_available_reporting_integrations()
    if missing := [name for name in named if name not in ("none", "all", *there)]:
        raise UserError(
            f"report_to names {', '.join(missing)}, which is not installed",
            f"pip install {' '.join(missing)}, or name one of: none, {', '.join(there)}",
        )
    return named


@contextmanager
def refusals(report_to: Sequence[str]) -> Iterator[None]:
    """Turn what a tracker raises, of settings or a server that it does not like, into one line.

    Raises:
        UserError: one of ``report_to`` raised an exception of its own.
    """
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in report_to:
            raise
        what = str(error).strip().partition("\n")[0][:300]
        raise UserError(f"{package} refused: {what}", "mend its settings, or leave it out of report_to") from error


@contextmanager
def tensorboard(trainer: Trainer, folder: Path, *, step: int) -> Iterator[None]:
    """Let TensorBoard's event files go to ``folder``, where the recipe wants them; whole also when training fails.

    Args:
        step: where training goes on; what an interrupted attempt told of later steps is taken back.
    """
    if "tensorboard" not in trainer.args.report_to:
        yield
        return
    trainer.remove_callback(TensorBoardCallback)
    if not trainer.accelerator.is_main_process:
        yield
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    trainer.add_callback(TensorBoardCallback(writer))
    try:
        yield
    finally:
        writer.close()
