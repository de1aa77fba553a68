"""Erasing what was said and remembered, and making memory and database agree after a crash.

Memories go first and rows after them: whoever is killed in between has erased too little of what was not yet
acknowledged, and never leaves a memory of which no row knows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gonggam.errors import UserError
from pipeline.chat.counselor import Counselor
from pipeline.serve.callers import Caller
from pipeline.serve.store import Store
from pipeline.serve.store.people import LOCAL_NAME
from pipeline.serve.store.records import Exchanged, Person

logger = logging.getLogger("gonggam.serve")

LOCAL_MEMORY = "me"
"""Memory of the one person where there are no accounts: the one `gonggam chat` uses."""


@dataclass(frozen=True)
class Member:
    """Who talks: an account (or the one person of this machine), its memory and whose turn in the queue it takes."""

    person: Person
    memory: str
    owner: str

    @classmethod
    def of(cls, caller: Caller, person: Person) -> Member:
        """The member behind a caller."""
        memory = LOCAL_MEMORY if caller.account is None else caller.memory_of("")
        return cls(person, memory, caller.owner)


class Erasure:
    """Erases from the database, the memories and the model's computed prefixes.

    Args:
        store: the database.
        counselor: holds the memories.
    """

    def __init__(self, store: Store, counselor: Counselor) -> None:
        self.store, self.counselor = store, counselor

    def dialog(self, member: Member, old: Exchanged) -> None:
        """One exchange; the caller holds its room."""
        if old.exchange:
            self.counselor.forget(member.memory, old.exchange)
        self.store.rooms.delete_dialog(member.person.id, old.id)
        self.counselor.reset(member.memory, old.room)
        self.store.upkeep.wipe_log()

    def room(self, member: Member, room: str) -> None:
        """A room and what is remembered of it; the caller holds it."""
        for dialog in self.store.rooms.dialogs(member.person.id, room):
            if dialog.exchange:
                self.counselor.forget(member.memory, dialog.exchange)
        self.store.rooms.delete(member.person.id, room)
        self.counselor.reset(member.memory, room)
        self.store.upkeep.wipe_log()

    def memory_of(self, member: Member, exchange: str) -> bool:
        """One exchange in the memory, which can still be read in its room; False if it is not remembered."""
        if not self.counselor.forget(member.memory, exchange):
            return False
        self.store.rooms.forget_exchange(member.person.id, exchange)
        return True

    def memories(self, member: Member) -> None:
        """Everything remembered, also by memories made for the account through the OpenAI-compatible API."""
        self._forget(self._names(member))
        self.store.rooms.forget_exchange(member.person.id)

    def everything(self, member: Member, *, account: bool) -> bool:
        """All that was said and is remembered; with ``account`` the account, too.

        Returns:
            False if the database was busy, so that erased bytes may stand in its file until the next clean-up.
        """
        rooms, names = self.store.rooms.of(member.person.id), self._names(member)
        self._forget(names)
        if account:
            self.store.people.remove(member.person.id)
        else:
            self.store.rooms.delete_all(member.person.id)
        for room in rooms:
            self.counselor.reset(member.memory, room.id)
        self._forget(names)  # what a reply that was on its way has remembered meanwhile
        try:
            self.store.upkeep.scrub()
        except UserError as error:
            logger.warning("after an erasure: %s", error)
            return False
        return True

    def reconcile(self, member: Member, room: str) -> None:
        """Make the memory of a room say what the database says, which alone was acknowledged."""
        written = {d.exchange for d in self.store.rooms.dialogs(member.person.id, room) if d.exchange}
        kept = {e["id"] for e in self.counselor.export(member.memory)["exchanges"] if e["session"] == room}
        for exchange in kept - written:
            self.counselor.forget(member.memory, exchange)
        for exchange in written - kept:
            self.store.rooms.forget_exchange(member.person.id, exchange)

    def recover(self) -> int:
        """Put right what workers left that died while they answered; returns how many rooms."""
        found = self.store.claims.abandoned()
        for user, room in found:
            person, entered = self.store.people.get(user), self.store.claims.enter(user, room, closed=True)
            if person and entered and entered.claim:
                caller = Caller(None if person.name == LOCAL_NAME else user, "")
                self.reconcile(Member.of(caller, person), room)
                self.store.claims.release(room, entered.claim)
        self.store.workers.strike()
        return len(found)

    def _names(self, member: Member) -> set[str]:
        return {member.memory, *self.store.people.memories(member.person.id)}

    def _forget(self, memories: set[str]) -> None:
        for name in memories:
            self.counselor.forget(name)
