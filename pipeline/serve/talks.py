"""From a message in a room to an exchange in the database, on whichever worker it arrives.

A request claims its room in the database, hands the room's exchanges to the counsellor, and commits the reply and the
end of its claim together: what was answered to the client is on the disk. A claim that was never ended tells the next
request that its worker died, and what that worker may have left in the memory is put right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from pipeline.chat.counselor import Counselor
from pipeline.chat.reply import Note, Reply
from pipeline.chat.session import Turned
from pipeline.chat.turn import Ask
from pipeline.serve.erasure import Erasure, Member
from pipeline.serve.finish import finish
from pipeline.serve.queue import ReplyQueue
from pipeline.serve.refused import Refused
from pipeline.serve.store import LostClaim, Store
from pipeline.serve.store.claims import LEASE, Entered, Past
from pipeline.serve.store.records import Choice, Draft, Exchanged, Pair


@dataclass(frozen=True)
class Answered:
    """A reply that is committed, with what the room shows once and does not keep."""

    dialog: Exchanged
    introduction: str | None
    recalled: tuple[Note, ...]
    ended: bool


@dataclass(frozen=True)
class Offered:
    """Two replies that wait to be chosen from, with what the room shows once."""

    pair: Pair
    introduction: str | None


@dataclass
class _Held:
    """A room under a claim; ``ended``: a commit has ended the claim already."""

    member: Member
    entered: Entered
    claim: str
    ended: bool = False

    @property
    def room(self) -> str:
        """Id of the room."""
        return self.entered.room

    @property
    def said(self) -> list[Past]:
        """What was said in it, where that was asked for."""
        return self.entered.said


class Talks:
    """What can be said and done in rooms.

    Args:
        store: the database.
        counselor: holds the memories.
        queue: makes replies with the counsellor.
    """

    def __init__(self, store: Store, counselor: Counselor, queue: ReplyQueue) -> None:
        self.store, self.counselor, self.queue = store, counselor, queue
        self.erasure = Erasure(store, counselor)

    async def send(
        self, member: Member, room: str, text: str, character: str | None = None, sentiment: str | None = None
    ) -> AsyncGenerator[str | Answered, None]:
        """Yield the pieces of the reply to a message, and last what was committed.

        Two replies of which none was chosen are settled first: the message is kept with the first of them.

        Raises:
            Refused: not_found, room_ended, room_busy, no_character or no_sentiment.
            ApiError: too many are waiting.
            UserError: the model fails; nothing was kept.
        """
        async with self._holding(member, room, said=True) as held:
            await self._settle(held)
            ask = self._ask(held, text, held.said, character, sentiment=sentiment)
            async for item in self._answer(held, ask):
                yield item

    async def again(
        self, member: Member, dialog: str, text: str | None = None, sentiment: str | None = None
    ) -> AsyncGenerator[str | Answered, None]:
        """Answer the last message of a room anew; with ``text`` the message itself is changed.

        Raises:
            Refused: as `send`, or not_last.
        """
        old = await self._dialog(member, dialog)
        async with self._holding(member, old.room, said=True) as held:
            dialogs = held.said
            if held.entered.undecided or not dialogs or dialogs[-1].id != dialog:
                raise Refused("not_last")
            *history, last = dialogs
            said = last.message if text is None else text
            ask = self._ask(held, said, history, last.character, sentiment=sentiment, without=last)
            async for item in self._answer(held, ask, replaces=last):
                yield item

    async def offer(
        self,
        member: Member,
        room: str,
        text: str,
        sentiment: str | None = None,
        adapters: tuple[str | None, str | None] = (None, None),
    ) -> Offered | Answered:
        """Two replies to choose from; where words are fixed or both say the same, one, committed as by `send`."""
        async with self._holding(member, room, said=True) as held:
            await self._settle(held)
            asks = [self._ask(held, text, held.said, adapter=adapter, sentiment=sentiment) for adapter in adapters]
            first = await self.queue.reply(asks[0], member.owner)
            if first.source in ("safety", "notice"):
                return await finish(partial(self._commit, held, asks[0], first))
            second = await self.queue.reply(replace(asks[1], avoid=(first.text,)), member.owner)
            if first.text == second.text or second.source in ("safety", "notice"):
                return await finish(partial(self._commit, held, asks[0], first))
            pair = [Draft.of(asks[0].text, reply) for reply in (first, second)]
            kept = await finish(partial(self.store.preferences.offer, room, held.claim, *pair))
            return Offered(kept, first.introduction)

    async def choose(self, member: Member, pair: str, choice: Choice) -> Exchanged:
        """Take one of two replies into the room, also into one that was ended meanwhile."""
        found = await asyncio.to_thread(self.store.preferences.pending, member.person.id, pair)
        if found is None:
            raise Refused("not_found")
        room, offered = found
        async with self._holding(member, room, closed=True) as held:
            if await asyncio.to_thread(self.store.preferences.pending, member.person.id, pair) is None:
                raise Refused("not_found")
            return await finish(partial(self._take, held, offered, choice))

    async def delete(self, member: Member, dialog: str) -> None:
        """Erase one exchange, also from the memory."""
        old = await self._dialog(member, dialog)
        async with self._holding(member, old.room, closed=True):
            await finish(partial(self.erasure.dialog, member, old))

    async def delete_room(self, member: Member, room: str) -> None:
        """Erase a room and what is remembered of it."""
        async with self._holding(member, room, closed=True):
            await finish(partial(self.erasure.room, member, room))

    def _ask(
        self,
        held: _Held,
        text: str,
        history: list[Past],
        character: str | None = None,
        *,
        adapter: str | None = None,
        sentiment: str | None = None,
        without: Past | None = None,
    ) -> Ask:
        persona = character or held.entered.character
        if persona not in self.counselor.personas:
            raise Refused("no_character")
        known = self.counselor.sentiments
        if sentiment is not None and not (known and known.knows(sentiment)):
            raise Refused("no_sentiment")
        return Ask(
            text,
            user=held.member.memory,
            persona=persona,
            session=held.room,
            adapter=adapter,
            sentiment=sentiment,
            history=[Turned(d.message, d.reply, d.risk, d.emotion, d.exchange) for d in history],
            remember=False,
            unseen=(without.exchange,) if without and without.exchange else (),
        )

    async def _answer(
        self, held: _Held, ask: Ask, replaces: Past | None = None
    ) -> AsyncGenerator[str | Answered, None]:
        pieces = self.queue.stream(ask, held.member.owner)
        try:
            async for item in pieces:
                yield (
                    await finish(partial(self._commit, held, ask, item, replaces)) if isinstance(item, Reply) else item
                )
        finally:
            await pieces.aclose()

    def _commit(self, held: _Held, ask: Ask, reply: Reply, replaces: Past | None = None) -> Answered:
        """Remember and write an exchange."""

        def write(draft: Draft) -> Exchanged:
            if replaces and replaces.exchange:  # first: what was changed must not be remembered, whatever comes
                self.counselor.forget(held.member.memory, replaces.exchange)
            old = replaces.id if replaces else None
            return self.store.rooms.write(held.room, held.claim, draft, replaces=old, ends=reply.ended)

        dialog = self._keep(held, reply, Draft.of(ask.text, reply), write)
        held.ended = True
        return Answered(dialog, reply.introduction, reply.recalled, reply.ended)

    def _take(self, held: _Held, offered: Pair, choice: Choice) -> Exchanged:
        """Remember and write the reply that was chosen."""
        draft = offered.a if choice == "a" else offered.b
        choose = self.store.preferences.choose
        taken = self._keep(held, _said(draft), draft, partial(choose, held.room, held.claim, offered.id, choice))
        held.ended = True
        return taken

    async def _settle(self, held: _Held) -> None:
        """Keep the message of a pair that nobody chose from, with the first reply; no preference comes of it."""
        if not held.entered.undecided:
            return
        settle = self.store.preferences.settle
        pairs = await asyncio.to_thread(self.store.preferences.pending_in, held.member.person.id, held.room)
        for pair in pairs:
            write = partial(settle, held.room, held.claim, pair.id)
            held.said.append(Past.of(await finish(partial(self._keep, held, _said(pair.a), pair.a, write))))

    def _keep(self, held: _Held, reply: Reply, draft: Draft, write: Callable[[Draft], Exchanged]) -> Exchanged:
        """Remember an exchange and write it; if it cannot be written it is not remembered either."""
        memory, room = held.member.memory, held.room
        exchange = self.counselor.remember(draft.message, reply, user=memory, session=room)
        try:
            written = write(draft.model_copy(update={"exchange": exchange}))
        except Exception as error:
            if exchange:
                self.counselor.forget(memory, exchange)
            if isinstance(error, LostClaim):
                raise Refused("not_found") from error
            raise
        return written

    def _read(self, user: str, dialog: str) -> Exchanged:
        found = self.store.rooms.dialog(user, dialog)
        if found is None:
            raise Refused("not_found")
        return found

    async def _dialog(self, member: Member, dialog: str) -> Exchanged:
        return await asyncio.to_thread(self._read, member.person.id, dialog)

    @asynccontextmanager
    async def _holding(
        self, member: Member, room: str, *, closed: bool = False, said: bool = False
    ) -> AsyncIterator[_Held]:
        """One request at a time in a room, over all workers.

        Args:
            closed: also in one that takes no new messages.
            said: bring what was said in it.
        """
        enter = partial(self.store.claims.enter, member.person.id, room, closed=closed, said=said)
        found = await finish(enter, undo=self._go_out)
        if found is None:
            raise Refused("not_found")
        if found.closed and not closed:
            raise Refused("room_ended")
        if found.claim is None:
            raise Refused("room_busy", retry_after=5)
        held = _Held(member, found, found.claim)
        renewing = asyncio.ensure_future(self._renew(room, found.claim))
        try:
            if found.abandoned:
                await finish(partial(self.erasure.reconcile, member, room))
            yield held
        finally:
            renewing.cancel()
            if not held.ended:
                await finish(partial(self.store.claims.release, room, found.claim))

    def _go_out(self, entered: Entered | None) -> None:
        """Let go of a room that was taken for somebody who has just gone away."""
        if entered and entered.claim:
            self.store.claims.release(entered.room, entered.claim)

    async def _renew(self, room: str, claim: str) -> None:
        """Keep a claim while its request lives."""
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(LEASE.total_seconds() / 3)
                await asyncio.to_thread(self.store.claims.renew, room, claim)


def _said(draft: Draft) -> Reply:
    """A reply that was offered, as one to be remembered."""
    return Reply(text=draft.reply, source=draft.source, risk=draft.risk, memorable=True)
