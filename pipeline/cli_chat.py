"""`gonggam chat` and `gonggam ask`: talking to a counsellor in a terminal, or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gonggam.errors import UserError
from gonggam.files import write_json
from pipeline.chat.resources import data
from pipeline.cli_arguments import MemoryOf, Persona, Where

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.chat.reply import Reply
    from pipeline.chat.streams import ReplyStream

User = Annotated[str, typer.Option(help="whose conversation this is; it is remembered under this name")]


def chat(where: Where, user: User = "me", persona: Persona = None, run: MemoryOf = None) -> None:
    """Talk to a counsellor; commands begin with a slash (/help)."""
    bot = _load(where, run)
    try:
        Talk(bot, user, persona).run()
    finally:
        bot.close()


def ask(
    where: Where,
    text: Annotated[str, typer.Argument(help="what to say; - reads it from standard input")],
    user: Annotated[str | None, typer.Option(help="whose conversation this is; none: nothing is remembered")] = None,
    persona: Persona = None,
    run: MemoryOf = None,
    json: Annotated[bool, typer.Option("--json", help="print the whole reply as JSON")] = False,
) -> None:
    """Ask once and print the reply."""
    bot = _load(where, run)
    try:
        reply = bot.reply(sys.stdin.read() if text == "-" else text, user=user, persona=persona)
    finally:
        bot.close()
    typer.echo(reply.model_dump_json(indent=2) if json else reply.text)


def _load(where: str, run: Path | None) -> Counselor:
    from transformers.utils import logging

    from pipeline import Counselor

    logging.disable_progress_bar()
    return Counselor.load(where, run=run)


def shorten(line: str, most: int = 400) -> str:
    """A line as it is echoed: what nobody wants to read again is cut."""
    return line if len(line) <= most else f"{line[:most]}…"


class Talk:
    """One conversation in a terminal; lines of a pipe are read as if they were typed."""

    def __init__(self, bot: Counselor, user: str, persona: str | None, console: Console | None = None) -> None:
        self.bot, self.user, self.persona = bot, user, persona
        self.console = console or Console(highlight=False)
        self.words = data("console")
        self.last: Reply | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/persona": self.set_persona,
            "/why": self.why,
            "/mood": self.mood,
            "/forget": self.forget,
            "/export": self.export,
            "/reset": self.reset,
        }

    def run(self) -> None:
        """Read lines until /quit, a goodbye or the end of input."""
        typed = sys.stdin.isatty()
        if self.bot.greeting:
            self.console.print(f"[bold magenta]{self.words['voice']}[/]  {escape(self.bot.greeting)}")
        if typed:
            self._note(self.words["hint"])
        while True:
            try:
                line = self.console.input(f"\n[bold cyan]{self.words['prompt']}[/]") if typed else next(sys.stdin)
            except (EOFError, KeyboardInterrupt, StopIteration):
                break
            line = line.strip()
            if not typed and line:
                self.console.print(f"\n[bold cyan]{self.words['prompt']}[/]{escape(shorten(line))}")
            if line in ("/quit", "/exit", "/q"):
                break
            if line and self.hear(line):
                return
        self._note(self.words["bye"])

    def hear(self, line: str) -> bool:
        """Obey a command or answer a message; True if the user said goodbye."""
        command, _, rest = line.partition(" ")
        if command in self.commands:
            self.commands[command](rest.strip())
        elif line.startswith("/"):
            self._note(self.words["unknown"].format(command=command))
        else:
            return self.say(line)
        return False

    def say(self, line: str) -> bool:
        """Stream the reply to a message; Ctrl-C ends it."""
        try:
            stream = self.bot.stream(line, user=self.user, persona=self.persona)
            self._speak(stream)
        except UserError as error:
            self.console.print(f"[red]{escape(str(error))}[/]")
            return False
        return bool(self.last and self.last.ended)

    def _speak(self, stream: ReplyStream) -> None:
        try:
            with self.console.status(self.words["thinking"]):
                first = next(stream, "")
            self.console.print(f"\n[bold magenta]{self.words['voice']}[/]  {escape(first)}", end="")
            for piece in stream:
                self.console.print(escape(piece), end="")
            self.console.print()
            self.last = stream.reply
        except KeyboardInterrupt:
            stream.close()
            self.console.print(f" [dim]{self.words['interrupted']}[/]")

    def help(self, _: str) -> None:
        """What can be typed."""
        table = Table.grid(padding=(0, 2))
        for command, meaning in self.words["help"].items():
            table.add_row(f"[cyan]{escape(command)}[/]", escape(meaning))
        self.console.print(table)

    def set_persona(self, name: str) -> None:
        """Change the manner of speech, or show what there is."""
        if name not in self.bot.personas:
            self._note(self.words["personas"].format(names=", ".join(self.bot.personas)))
            return
        self.persona = name
        self._note(self.words["persona_set"].format(name=name))

    def why(self, _: str) -> None:
        """Where the last reply came from."""
        if self.last is None:
            self._note(self.words["no_reply"])
            return
        reply, labels, table = self.last, self.words["why"], Table.grid(padding=(0, 2))
        usage = reply.usage
        spent = f"{usage.prompt_tokens} / {usage.cached_tokens} / {usage.completion_tokens} · {usage.seconds:.1f} s"
        feeling = f"{reply.emotion.label} {reply.emotion.score:.0%}" if reply.emotion else "-"
        rows = {
            "source": self.words["sources"][reply.source],
            "reasons": ", ".join(reply.reasons) or "-",
            "emotion": feeling,
            "risk": self.words["risks"][reply.risk],
            "usage": spent,
            "recalled": "\n".join(f"{note.when[:10]} {note.user} ({note.score:.2f})" for note in reply.recalled) or "-",
        }
        for key, value in rows.items():
            table.add_row(f"[dim]{labels[key]}[/]", escape(value))
        self.console.print(table)

    def mood(self, _: str) -> None:
        """The emotion of every message of this session, as bars."""
        felt = [turn.emotion for turn in self.bot.history(self.user) if turn.emotion]
        if not felt:
            self._note(self.words["no_reply"])
            return
        table = Table.grid(padding=(0, 2))
        for number, emotion in enumerate(felt, 1):
            bar = "█" * max(1, round(emotion.score * 20))
            table.add_row(f"[dim]{number}[/]", f"[magenta]{bar}[/]", emotion.label, f"{emotion.score:.0%}")
        self.console.print(table)

    def forget(self, what: str) -> None:
        """Erase the last exchange, or all."""
        if what == "all":
            self.bot.forget(self.user)
            self.last = None
            self._note(self.words["forgot_all"])
        elif self.last and self.last.exchange and self.bot.forget(self.user, self.last.exchange):
            self.last = None
            self._note(self.words["forgot"])
        else:
            self._note(self.words["nothing_to_forget"])

    def export(self, file: str) -> None:
        """Write everything that is remembered as JSON."""
        stored, path = self.bot.export(self.user), Path(file or "gonggam-memory.json")
        try:
            write_json(path, stored)
        except UserError as error:
            self.console.print(f"[red]{escape(str(error))}[/]")
            return
        self._note(self.words["exported"].format(count=len(stored["exchanges"]), file=path))

    def reset(self, _: str) -> None:
        """Begin anew."""
        self.bot.reset(self.user)
        self.last = None
        self._note(self.words["reset"])

    def _note(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/]")
