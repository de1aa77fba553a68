"""The inference function: a counsellor that remembers each user, feels with them and leaves no crisis to a model.

    from pipeline import Counselor
    bot = Counselor.load("runs/demo")
    bot.reply("면접 떨어졌어 ㅠㅠ", user="minji").text

What happens to a message, in this order: it is cleaned; its risk and emotion are told; a message of high risk, a
goodbye and the question what this is are answered with fixed words; all else goes to the model with the running
session and what is recalled of the user, through the quality gate; then the exchange is remembered. A reply that is
cancelled or fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any, Unpack

from pipeline.chat import safety
from pipeline.chat.answers import HumanAnswers
from pipeline.chat.backends import Backend, Message, PieceStream, Usage
from pipeline.chat.compose import Composer, session_key
from pipeline.chat.emotion import Feel, feel
from pipeline.chat.keep import Keeper
from pipeline.chat.options import ChatOptions
from pipeline.chat.personas import Persona, personas
from pipeline.chat.personas import persona as find_persona
from pipeline.chat.reply import Reply
from pipeline.chat.resources import data
from pipeline.chat.sentiment import Sentiments
from pipeline.chat.session import Session, Sessions, Turned, exchanges, name_of
from pipeline.chat.speak import Speaker, Spoken, rewritten
from pipeline.chat.streams import AsyncReplyStream, ReplyStream
from pipeline.chat.turn import Ask, Turn, Who, clean, waves

if TYPE_CHECKING:
    from pathlib import Path

    from rag.knowledge import KnowledgeBase
    from rag.memory import MemoryStore


class Counselor:
    """A counsellor over a backend. `load` puts one together; the parts can also be given one by one.

    Args:
        backend: the model.
        options: the recipe's `chat:` section.
        system: system prompt, the one of training.
        memory: where users are remembered; None: only while a session runs.
        knowledge: human-written answers for what the gate withdraws; None: general words.
        floor: lowest mean token log-probability of a reply in nats; None: not checked.
        emotion: tells the emotion of a message.
        convert: rewrites a reply in a persona's manner; None: the model speaks in it.
        sentiments: what replies answer to beside the message, for models trained so.
    """

    def __init__(
        self,
        backend: Backend,
        options: ChatOptions | None = None,
        *,
        system: str | None = None,
        memory: MemoryStore | None = None,
        knowledge: KnowledgeBase | None = None,
        floor: float | None = None,
        emotion: Feel = feel,
        convert: Callable[[str, Persona], str] | None = None,
        sentiments: Sentiments | None = None,
    ) -> None:
        self.backend, self.options, self.system = backend, options or ChatOptions(), system
        self.memory, self.knowledge, self.convert = memory, knowledge, convert
        self._feel, self._sessions = emotion, Sessions()
        kept = self.options.safety
        self._keeper = Keeper(memory, remember_grave=kept.remember, mark_grave=kept.remember_mark)
        self.sentiments = sentiments
        self._composer = Composer(
            backend, self.options, system, memory, sentiments=sentiments, converts=convert is not None
        )
        self._speaker = Speaker(backend, self.options.gate, floor, HumanAnswers(knowledge, self.options.gate, emotion))

    @classmethod
    def load(cls, where: str | Path, **changes: Any) -> Counselor:
        """A counsellor from a run folder, a model folder, a hub id or ``openai:http://host:port/v1#model``.

        Args:
            where: what to load.
            changes: ``run`` (a run folder whose memory and settings a model server shall use), ``backend`` (the run's
                model, where it is loaded already), ``keys`` (of sealed memories; the service's if left out), and any
                field of `ChatOptions` in place of the recipe's.

        Raises:
            UserError: it is not there or cannot be reached.
        """
        from pipeline.chat.load import load

        return load(cls, where, **changes)

    @property
    def greeting(self) -> str | None:
        """What to show before a session's first message: that this is an AI; None where the recipe says so."""
        return data("texts")["introduce"] if self.options.safety.introduce else None

    @property
    def personas(self) -> tuple[str, ...]:
        """Names that ``persona`` may have."""
        return tuple(personas())

    def reply(
        self,
        text: str,
        *,
        user: str | None = None,
        persona: str | None = None,
        session: str | None = None,
        adapter: str | None = None,
        sentiment: str | None = None,
    ) -> Reply:
        """Answer one message.

        Args:
            text: what the user writes.
            user: who; the exchange is remembered under this name. None: nothing is remembered.
            persona: manner of speech (`personas`); None: the recipe's.
            session: name of the conversation this belongs to; None: today's, or with no user a new one each time.
            adapter: an adapter's name or ``none``; None: the recipe's.
            sentiment: what a model trained on sentiments shall answer to; None: predicted.

        Raises:
            UserError: unknown persona or adapter, or the backend fails (`BackendError`); then nothing was kept.
        """
        stream = self.stream(text, user=user, persona=persona, session=session, adapter=adapter, sentiment=sentiment)
        for _ in stream:
            pass
        return stream.reply

    def stream(self, text: str | Ask, **who: Unpack[Who]) -> ReplyStream:
        """As `reply`, but piece by piece."""
        cancelled = Event()
        ask = text if isinstance(text, Ask) else Ask(text, **who)
        return ReplyStream(self._steps(ask, cancelled), cancelled)

    def reply_many(self, asks: Sequence[Ask | str]) -> list[Reply]:
        """Answer many messages; those of different sessions are worked on together, those of one in order."""
        replies: dict[int, Reply] = {}
        for wave in waves([Ask(ask) if isinstance(ask, str) else ask for ask in asks]):
            replies.update(zip(wave, self._together(list(wave.values())), strict=True))
        return [replies[place] for place in range(len(asks))]

    async def areply(self, text: str, **who: Unpack[Who]) -> Reply:
        """`reply` for asynchronous code; cancelling the task stops the model."""
        stream = self.astream(text, **who)
        async for _ in stream:
            pass
        return stream.reply

    def astream(self, text: str, **who: Unpack[Who]) -> AsyncReplyStream:
        """`stream` for asynchronous code."""
        return AsyncReplyStream(self.stream(text, **who))

    def history(self, user: str | None, session: str | None = None) -> list[Turned]:
        """The running session's exchanges, those of an earlier process among them."""
        running = self._sessions.of(user, session)
        with running.held(self.options.timeout_s):
            self._keeper.catch_up(user, running)
            return list(running.turns)

    def take_up(self, messages: Sequence[Message], *, session: str, user: str | None = None) -> None:
        """Let a session go on from a conversation held elsewhere, in place of what it held; nothing is remembered."""
        running = self._sessions.of(user, session)
        with running.held(self.options.timeout_s):
            running.turns, running.fresh, running.shared = exchanges(messages), False, False
            running.assessed = False

    def reset(self, user: str | None, session: str | None = None) -> None:
        """Begin the running session anew; what is remembered on disk stays."""
        name = name_of(user, session)
        self._keeper.end(user, name)
        self._sessions.drop(user, name)
        self.backend.forget(session_key(user, name))

    def remember(self, text: str, reply: Reply, *, user: str, session: str) -> str | None:
        """Write an exchange to a user's memory that was asked for with ``remember=False``; returns its id there.

        None is returned and nothing written where there is no memory or the exchange does not belong there.
        """
        if not reply.memorable:
            return None
        turned = Turned(clean(text), reply.text, reply.risk, reply.emotion, kind=reply.kind)
        return self._keeper.write(user, session, turned)

    def forget(self, user: str, exchange: str | None = None) -> bool:
        """Erase one exchange (True if there was one of this id) or everything that is known of a user."""
        for name in self._sessions.names(user):
            self.backend.forget(session_key(user, name))
        self._sessions.drop(user)
        return self._keeper.forget(user, exchange)

    def export(self, user: str) -> dict[str, Any]:
        """Everything stored of a user, as plain JSON values."""
        return self._keeper.export(user)

    def close(self) -> None:
        """Save memories and let go of the model."""
        if self.memory:
            self.memory.close()
        self.backend.close()

    def _steps(self, ask: Ask, cancelled: Event) -> Generator[str, None, Reply | None]:
        """Yield the reply's pieces; the generator's value is the `Reply`, None if it was cancelled."""
        session = self._sessions.of(ask.user, ask.session, ask.history)
        with session.held(self.options.timeout_s):
            turn = self._prepare(ask, session)
            return (yield from self._say(turn, cancelled))

    def _together(self, asks: Sequence[Ask]) -> list[Reply]:
        with ExitStack() as held:
            found = [self._sessions.of(ask.user, ask.session, ask.history) for ask in asks]
            for session in sorted(found, key=id):  # one order for all: no two wait in a ring
                held.enter_context(session.held(self.options.timeout_s))
            turns = [self._prepare(ask, session) for ask, session in zip(asks, found, strict=True)]
            asking = {id(turn): turn.request for turn in turns if turn.request}
            begun = dict(zip(asking, self.backend.stream(list(asking.values())), strict=True))
            streams = []
            for turn in turns:
                cancelled = Event()
                streams.append(ReplyStream(self._say(turn, cancelled, begun.get(id(turn))), cancelled))
            return [("".join(stream), stream.reply)[1] for stream in streams]

    def _prepare(self, ask: Ask, session: Session) -> Turn:
        """Everything up to the first token."""
        self._keeper.catch_up(ask.user, session)
        persona = find_persona(ask.persona or self.options.persona)
        said, concern = session.in_view(self.options.safety.history_turns)
        threshold = self.options.safety.threshold
        risk = safety.assess(ask.text, said, threshold=threshold, concern=concern, assessed=session.assessed)
        turn = Turn(ask, session, persona, risk)
        turn.emotion = self._feel(ask.text) if ask.text else None
        turn.introduction = (
            data("texts")["introduce"] if self.options.safety.introduce and not session.introduced else None
        )
        turn.answer_fixed(self.options)
        if turn.fixed is None:
            self._composer.compose(turn)
        return turn

    def _say(
        self, turn: Turn, cancelled: Event, begun: PieceStream | None = None
    ) -> Generator[str, None, Reply | None]:
        """Yield the pieces of a prepared turn, then remember the exchange."""
        if turn.fixed:
            text, source = turn.fixed
            yield text
            spoken = Spoken(text, source, Usage())
        else:
            assert turn.request is not None  # composed wherever no words are fixed
            asked, grave = turn.request, "earlier_high" in turn.risk.reasons
            steps = self._speaker.speak(asked.messages, turn.ask.text, asked.settings, cancelled, begun, grave=grave)
            if (convert := self.convert) and turn.persona.instruction:
                limit = self.options.gate.max_repetition
                steps = rewritten(steps, lambda text: convert(text, turn.persona), limit)
            spoken = yield from steps
            if cancelled.is_set():
                return None
            if after := turn.afterword():
                yield f"\n\n{after}"
                spoken = replace(spoken, text=f"{spoken.text}\n\n{after}")
        return self._finish(turn, spoken)

    def _finish(self, turn: Turn, spoken: Spoken) -> Reply:
        past = turn.past(spoken)
        worth = turn.fixed is None or spoken.source == "safety"
        if worth and turn.ask.remember and turn.ask.user:
            past.exchange = self._keeper.write(turn.ask.user, turn.session.name, past)
        turn.session.turns.append(past)
        turn.session.introduced = True
        if turn.ended:
            self.reset(turn.ask.user, turn.session.name)
        return turn.replied(spoken, past.exchange, memorable=worth)
