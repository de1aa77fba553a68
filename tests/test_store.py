"""The service's database: the same on three servers, sealed, forgetting, and whole after a kill."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from conftest import ROOT, environment
from sqlalchemy import inspect, select, update
from store_standin import WEAK, database_url, holding

from gonggam.errors import UserError
from pipeline.chat.personas import personas
from pipeline.chat.reply import Emotion
from pipeline.cipher import Cipher, new_key, read_keys
from pipeline.cli import main
from pipeline.serve.accounts import HASHING, Accounts, Limits, fold
from pipeline.serve.errors import ApiError
from pipeline.serve.store import Database, LostClaim, Store, claims, database, default_url, migrate
from pipeline.serve.store.models import Base, Counsel, Dialog, Worker
from pipeline.serve.store.pace import Pace
from pipeline.serve.store.records import Draft
from pipeline.serve.store.workers import Process

SECRET = "초코파이하늘별"


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def url(request, tmp_path):
    with database_url(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def store(tmp_path):
    opened = Store.open(default_url(tmp_path))
    yield opened
    opened.close()


def draft(message="안녕 😀", reply="네, 들을게요", **changes):
    emotion = Emotion(label="기쁨(행복한)", score=0.5)
    values = {"source": "model", "risk": "none", "character": "기본", "emotion": emotion}
    return Draft(message=message, reply=reply, **values | changes)


def say(store, user, room, *texts):
    found = []
    for text in texts:
        claim = store.claims.enter(user, room).claim
        found.append(store.rooms.write(room, claim, draft(text)).id)
    return found


def someone(store, name="minji"):
    person = store.people.add(name, "hash")
    return person, store.rooms.start(person.id, "기본", "면접 🙂")


def test_migrations_go_up_and_down_and_say_what_the_models_say(url):
    database = Database(url)
    for _ in range(2):
        migrate.upgrade(database)
        assert migrate.current(database) == migrate.newest()
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []
        migrate.downgrade(database, "base")
        assert inspect(database.engine).get_table_names() == ["alembic_version"]
    with pytest.raises(UserError, match="cannot migrate"):
        migrate.upgrade(database, "no_such")
    database.close()


def test_workers_that_start_at_once_do_not_get_in_each_others_way(url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(4)))
    assert {len(store.rooms.characters()) for store in stores} == {len(personas())}
    for store in stores:
        store.close()


def test_the_same_life_on_every_server(url):
    store = Store.open(url, [new_key()])
    person, room = someone(store)
    assert store.people.add("minji", "other") is None
    first, second = say(store, person.id, room.id, f"{SECRET} 😀 첫 번째", "두 번째")
    assert [d.message for d in store.rooms.dialogs(person.id, room.id)] == [f"{SECRET} 😀 첫 번째", "두 번째"]
    assert store.rooms.of(person.id)[0].title == "면접 🙂"
    assert store.rooms.of(person.id)[0].dialogs == 2
    store.rooms.rate(first, 1, "좋아요")
    assert store.rooms.dialog(person.id, first).rating == 1
    claim = store.claims.enter(person.id, room.id).claim
    replaced = store.rooms.write(room.id, claim, draft("고친 말"), replaces=second).id
    assert [d.position for d in store.rooms.dialogs(person.id, room.id)] == [0, 1]
    assert [felt.dialog for felt in store.insight.emotions(person.id)] == [first, replaced]
    assert store.insight.emotions(person.id, room="0" * 24) == []

    claim = store.claims.enter(person.id, room.id).claim
    pair = store.preferences.offer(room.id, claim, draft("둘 중", "가"), draft("둘 중", "나"))
    claim = store.claims.enter(person.id, room.id).claim
    store.preferences.choose(room.id, claim, pair.id, "b", pair.b)
    assert list(store.preferences.pairs()) == []  # nobody has agreed to that
    store.people.agree(person.id, "training", "1", True)
    (preferred,) = store.preferences.pairs()
    assert [m["content"] for m in preferred.messages][-3:] == ["고친 말", "네, 들을게요", "둘 중"]
    assert (preferred.chosen, preferred.rejected) == ("나", "가")
    store.people.agree(person.id, "training", "1", False)
    assert list(store.preferences.pairs()) == []

    counts = store.insight.counts()
    assert (counts.users, counts.rooms, counts.dialogs, counts.choices, counts.ratings) == (1, 1, 3, 1, {"1": 1})
    assert store.people.remove(person.id)
    counts = store.insight.counts()
    assert (counts.users, counts.rooms, counts.dialogs, counts.choices, counts.ratings) == (0, 0, 0, 0, {})
    assert store.upkeep.expire(0) == 0
    store.close()


def test_of_a_long_room_the_next_reply_is_told_the_newest_and_every_danger(url):
    store = Store.open(url)
    person, room = someone(store)
    for place in range(claims.IN_VIEW + 2 * claims.STRIDE + 1):
        claim = store.claims.enter(person.id, room.id).claim
        store.rooms.write(room.id, claim, draft(f"{place}", risk="high" if place == 7 else "none"))
        if place == claims.IN_VIEW:
            claim = store.claims.enter(person.id, room.id, said=True)
            assert [one.message for one in claim.said] == [f"{n}" for n in range(place + 1)]
            store.claims.release(room.id, claim.claim)
    told = [one.message for one in store.claims.enter(person.id, room.id, said=True).said]
    first = 2 * claims.STRIDE
    assert told == ["7", *(f"{n}" for n in range(first, first + claims.IN_VIEW + 1))]
    store.close()


def test_workers_count_a_users_messages_together(url):
    """Two a minute: at once two, then one every half minute; whoever is refused does not wait longer for it."""
    stores, time = [Store.open(url) for _ in range(2)], [1e9]
    paces = [Pace(store.database, clock=lambda: time[0]) for store in stores]
    minji, jun = (stores[0].people.add(name, "hash").id for name in ("minji", "jun"))

    def spend(user):
        found = paces[0].spend(user, 2)
        paces.reverse()
        return found

    assert [spend(minji), spend(minji), spend(minji), spend(minji), spend(jun)] == [0, 0, 30, 30, 0]
    time[0] += 29.5
    assert spend(minji) == 1
    time[0] += 0.5
    assert [spend(minji), spend(minji)] == [0, 30]
    time[0] += 300
    assert [spend(minji), spend(minji), spend(minji)] == [0, 0, 30]
    for store in stores:
        store.close()


def test_many_messages_at_once_are_all_counted(url):
    store = Store.open(url)
    user = store.people.add("minji", "hash").id
    pace = Pace(store.database, clock=lambda: 1e9)
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: pace.spend(user, 5), range(20)))
    assert sorted(waits) == [0] * 5 + [12] * 15
    store.close()


def test_a_character_that_is_none_is_told_and_nothing_is_written(store):
    person, room = someone(store)
    with pytest.raises(UserError, match="no character '없는 말투'"):
        store.rooms.start(person.id, "없는 말투")
    claim = store.claims.enter(person.id, room.id).claim
    with pytest.raises(UserError, match="no character '없는 말투'"):
        store.rooms.write(room.id, claim, draft(character="없는 말투"))
    assert [(one.id, one.dialogs) for one in store.rooms.of(person.id)] == [(room.id, 0)]
    assert store.rooms.write(room.id, claim, draft()).position == 0  # the claim still holds


def test_a_room_answers_one_request_at_a_time_and_a_lost_claim_writes_nothing(url):
    store = Store.open(url)
    person, room = someone(store)
    won, start = [], threading.Barrier(8)

    def race():
        start.wait()
        won.append(store.claims.enter(person.id, room.id).claim)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (claim,) = filter(None, won)
    assert store.claims.renew(room.id, claim, timedelta(0))  # as if its worker had died a while ago
    assert store.claims.abandoned() == [(person.id, room.id)]
    entered = store.claims.enter(person.id, room.id)
    assert entered.abandoned
    assert not store.claims.renew(room.id, claim)
    with pytest.raises(LostClaim):
        store.rooms.write(room.id, claim, draft())
    assert store.rooms.dialogs(person.id, room.id) == []
    written = store.rooms.write(room.id, entered.claim, draft())
    assert store.rooms.dialogs(person.id, room.id) == [written]
    store.close()


CLAIMER = """
import sys, time
from pipeline.serve.store import Store
store = Store.open(sys.argv[1])
print(store.claims.enter(sys.argv[2], sys.argv[3]).claim, flush=True)
sys.stdin.read()
if sys.argv[4] == "stop":
    store.close()
"""


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_room_is_free_at_once_when_whoever_claimed_it_is_gone_and_not_before(url, tmp_path, end):
    store = Store.open(url)
    person, room = someone(store)
    command = [sys.executable, "-c", CLAIMER, url, person.id, room.id, end]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment(tmp_path), cwd=ROOT) as other:
        claim = other.stdout.readline().decode().strip()
        assert store.claims.enter(person.id, room.id).claim is None
        assert store.claims.abandoned() == []
        store.workers.strike()
        if end == "kill":
            other.kill()
    assert store.claims.abandoned() == [(person.id, room.id)]
    store.workers.strike()  # does not forget whose claim it is while it stands
    entered = store.claims.enter(person.id, room.id, said=True)
    assert (entered.abandoned, entered.said) == (True, [])
    with pytest.raises(LostClaim):
        store.rooms.write(room.id, claim, draft())
    store.rooms.write(room.id, entered.claim, draft())
    store.workers.strike()
    with store.database.looking() as connection:
        assert connection.scalars(select(Worker.id)).all() == [store.workers.own]
    store.close()


def test_only_what_is_provably_gone_is_gone():
    own = Process.own()
    assert own.place  # tells something on this system, or the test above shows nothing
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        ended.wait()
    assert not own.gone
    assert replace(own, pid=ended.pid).gone
    assert replace(own, started=own.started - 1).gone  # the number was given again
    assert not replace(own, pid=ended.pid, place="another boot").gone
    assert not Process("", ended.pid, 0).gone


def test_threads_of_one_process_wait_for_one_another_not_for_sqlite(tmp_path, monkeypatch):
    """SQLite's own waiting is switched off here: it would turn away whoever comes while another writes."""
    monkeypatch.setattr(database, "BUSY_S", 0)
    store = Store.open(default_url(tmp_path))
    store.rooms.set_characters([("기본", "")])
    users = [store.people.add(f"user{i}", "hash").id for i in range(8)]

    def talk(user):
        return say(store, user, store.rooms.start(user, "기본").id, *"가나다라마바사아자차")

    with ThreadPoolExecutor(len(users)) as pool:
        assert [len(told) for told in pool.map(talk, users)] == [10] * len(users)
    store.close()


def test_sealed_texts_are_in_no_file_and_a_wrong_key_is_told(tmp_path):
    key = new_key()
    store = Store.open(default_url(tmp_path), [key])
    person, room = someone(store)
    (dialog,) = say(store, person.id, room.id, SECRET)
    store.rooms.rate(dialog, -1, SECRET)
    store.rooms.change(person.id, room.id, title=SECRET, character=None)
    claim = store.claims.enter(person.id, room.id).claim
    store.preferences.offer(room.id, claim, draft(SECRET), draft(SECRET, "나"))
    store.people.note_memory(person.id, SECRET)
    store.close()
    assert holding(tmp_path, SECRET) == []
    with pytest.raises(UserError, match="another key"):
        Store.open(default_url(tmp_path), [new_key()])
    with pytest.raises(UserError, match="another key"):
        Store.open(default_url(tmp_path))
    with pytest.raises(UserError, match="base64"):
        Cipher(["short"])


def test_keys_are_changed_and_given_to_a_database_that_had_none(tmp_path):
    url, old, new = default_url(tmp_path), new_key(), new_key()
    plain = Store.open(url)
    person, room = someone(plain)
    say(plain, person.id, room.id, SECRET, "=$ 앞 글자가 표와 같은 말")
    plain.close()
    assert holding(tmp_path, SECRET)
    for keys in ([old], [new, old]):
        store = Store.open(url, keys)
        store.upkeep.rotate()
        store.close()
        assert holding(tmp_path, SECRET) == []
    store = Store.open(url, [new])
    said = [dialog.message for dialog in store.rooms.dialogs(person.id, room.id)]
    assert said == [SECRET, "=$ 앞 글자가 표와 같은 말"]
    store.close()


def test_what_is_erased_is_in_no_file(store, tmp_path):
    gone, room = someone(store)
    stays, other = someone(store, "dana")
    for number in range(12):
        say(store, gone.id, room.id, f"{SECRET} " + "가나다라" * (60 * number))
        say(store, stays.id, other.id, "남는 말 " + "마바사아" * (50 * number))
    dialogs = store.rooms.dialogs(gone.id, room.id)
    assert holding(tmp_path, SECRET)
    store.people.remove(gone.id)
    store.upkeep.scrub()
    assert holding(tmp_path, SECRET) == []
    assert holding(tmp_path, dialogs[0].id) == []
    assert len(store.rooms.dialogs(stays.id, other.id)) == 12


def test_what_is_older_than_the_term_goes(store, tmp_path):
    person, room = someone(store)
    old, new = say(store, person.id, room.id, SECRET, "오늘 한 말")
    empty = store.rooms.start(person.id, "기본")
    with store.database.writing() as session:
        past = store.rooms.dialog(person.id, old).created_at - timedelta(days=40)
        session.execute(update(Dialog).where(Dialog.id == old).values(created_at=past))
    assert store.upkeep.expire(30) == 1
    assert [dialog.id for dialog in store.rooms.dialogs(person.id, room.id)] == [new]
    assert store.rooms.get(person.id, empty.id)
    assert holding(tmp_path, SECRET) == []
    claim = store.claims.enter(person.id, empty.id).claim
    store.preferences.offer(empty.id, claim, draft(SECRET), draft(SECRET, "나"))
    with store.database.writing() as session:
        session.execute(update(Counsel).where(Counsel.id == empty.id).values(created_at=past))
    assert store.upkeep.expire(30) == 0
    assert len(store.preferences.pending_in(person.id, empty.id)) == 1  # a choice that is still to be made
    assert store.upkeep.expire(0) == 1
    assert store.rooms.of(person.id) == []
    assert holding(tmp_path, SECRET) == []


def test_many_log_ins_at_once_do_not_hash_all_at_once(tmp_path):
    class Hasher:
        running = most = 0
        lock, full = threading.Lock(), threading.Event()

        def hash(self, password):
            return "hash"

        def verify(self, hashed, password):
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            if self.running == HASHING:
                self.full.set()
            assert self.full.wait(30)
            with self.lock:
                self.running -= 1
            return False

    accounts = Accounts(Store.open(default_url(tmp_path)), hasher=Hasher(), limits=Limits(99, 99, 99))
    with ThreadPoolExecutor(3 * HASHING) as pool:
        tries = [pool.submit(accounts.log_in, "minji", "틀린 비밀번호") for _ in range(3 * HASHING)]
    assert [str(found.exception().code) for found in tries] == ["bad_login"] * len(tries)
    assert accounts._hasher.most == HASHING


def test_tries_are_counted_together_and_refused(store):
    accounts = Accounts(store, hasher=WEAK, limits=Limits(name_and_address=3, name=5, address=9))
    other_worker = Accounts(store, hasher=WEAK, limits=accounts.limits)
    accounts.sign_up("Minji", "파란 고래 42마리")
    codes = []
    for worker in (accounts, other_worker) * 3:
        with pytest.raises(ApiError) as refused:
            worker.log_in("minji", "틀린 비밀번호", address="1.2.3.4")
        codes.append(refused.value.code)
    assert codes == ["bad_login"] * 3 + ["too_many"] * 3
    with pytest.raises(ApiError, match="시도") as refused:  # the right password does not help then
        accounts.log_in("minji", "파란 고래 42마리", address="1.2.3.4")
    assert 0 < refused.value.retry_after <= 15 * 60
    # Whoever is refused there does not lock the account for other addresses; tries from many addresses do.
    accounts.log_in("minji", "파란 고래 42마리", address="5.6.7.8")
    with pytest.raises(ApiError, match="맞지 않아요"):
        accounts.log_in("minji", "틀린 비밀번호", address="5.6.7.9")
    with pytest.raises(ApiError, match="시도"):
        accounts.log_in("minji", "파란 고래 42마리", address="5.6.7.8")


@pytest.mark.parametrize(
    ("name", "password", "code"),
    [
        ("a", "파란 고래 42마리", "bad_name"),
        ("(local)", "파란 고래 42마리", "bad_name"),
        ("min ji", "파란 고래 42마리", "bad_name"),
        ("minji", "짧다", "bad_password"),
        ("minji-minji", "MINJI-minji", "bad_password"),
        ("minji", "aaaaaaaaaaaa", "bad_password"),
        ("minji", "Qwer1234", "bad_password"),
        ("minji", "ab" * 65, "bad_password"),
        ("minji", "half a letter \ud800", "bad_password"),
    ],
)
def test_names_and_passwords_that_are_none(store, name, password, code):
    with pytest.raises(ApiError) as refused:
        Accounts(store, hasher=WEAK).sign_up(name, password)
    assert refused.value.code == code
    assert store.insight.counts().users == 0


def test_passwords_and_tokens_are_stored_as_hashes_only(store, tmp_path):
    accounts = Accounts(store, hasher=WEAK)
    person = accounts.sign_up("ＭＩＮＪＩ", "파란 고래 42마리")
    assert person.name == fold("minji")
    login, second = (accounts.log_in("minji", "파란 고래 42마리") for _ in range(2))
    assert accounts.who(login.token)[0] == person
    accounts.change_password(person, "파란 고래 42마리", "하얀 고래 43마리", token=second.token)
    assert accounts.who(login.token) is None
    assert accounts.who(second.token)
    assert accounts.log_out(second.token)
    assert accounts.who(second.token) is None
    expired = Accounts(store, hasher=WEAK, lasts=timedelta(0)).log_in("minji", "하얀 고래 43마리")
    assert accounts.who(expired.token) is None
    assert [holding(tmp_path, words) for words in (login.token, "고래", second.token)] == [[], [], []]


def test_a_password_is_hashed_anew_when_hashing_grew_dearer(store):
    from argon2 import PasswordHasher

    Accounts(store, hasher=WEAK).sign_up("minji", "파란 고래 42마리")
    before = store.people.find(fold("minji"))[1]
    dearer = Accounts(store, hasher=PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    dearer.log_in("minji", "파란 고래 42마리")
    after = store.people.find(fold("minji"))[1]
    assert before != after
    dearer.log_in("minji", "파란 고래 42마리")
    assert store.people.find(fold("minji"))[1] == after
    assert Accounts(store, hasher=WEAK).log_in("minji", "파란 고래 42마리")


WRITER = """
import sys
from datetime import timedelta
from pipeline.serve.store import Store
from pipeline.serve.store.records import Draft
from pipeline.serve.store.workers import Process
store, user, room = Store.open(sys.argv[1]), sys.argv[2], sys.argv[3]
number = int(sys.argv[4])
while True:
    claim = store.claims.enter(user, room, lease=timedelta(0)).claim  # so that nobody waits for one that was killed
    text = f"{number}번째 말"
    store.rooms.write(room, claim, Draft(message=text, reply=text, source="model", risk="none", character="기본"))
    print(number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    url = default_url(tmp_path)
    store = Store.open(url)
    person, room = someone(store)
    acknowledged = 0
    for lines in (3, 11, 26):  # killed after so many acknowledgements, wherever the next write then is
        command = [sys.executable, "-c", WRITER, url, person.id, room.id, str(acknowledged)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(tmp_path), cwd=ROOT) as writer:
            for _ in range(lines):
                acknowledged = int(writer.stdout.readline()) + 1
            writer.kill()
            acknowledged = max([acknowledged, *(int(line) + 1 for line in writer.stdout)])
        said = [dialog.message for dialog in store.rooms.dialogs(person.id, room.id)]
        assert said == [f"{number}번째 말" for number in range(len(said))]
        assert acknowledged <= len(said) <= acknowledged + 1
        acknowledged = len(said)
    with store.database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    store.close()


@pytest.mark.parametrize(("inside", "told"), [(b"", "no key in this file"), (b"\xff\xfe", "not 32 bytes")])
def test_a_key_file_that_holds_no_key_is_not_taken_for_having_none(tmp_path, inside, told):
    (tmp_path / "keys").write_bytes(inside)
    with pytest.raises(UserError, match=told):
        Cipher(read_keys(tmp_path / "keys"))


def test_db_commands(tmp_path, capsys):
    url, key = default_url(tmp_path), tmp_path / "keys"
    main_says(["db", "new-key", str(key)])
    main_says(["db", "upgrade", "--database", url])
    assert "at 0003" in capsys.readouterr().out
    store = Store.open(url, read_keys(key))
    person, room = someone(store)
    store.people.agree(person.id, "training", "1", True)
    say(store, person.id, room.id, SECRET)
    for texts in (("가", "나"), ("다", "라")):
        claim = store.claims.enter(person.id, room.id).claim
        source = "model" if texts[0] == "가" else "knowledge"
        pair = store.preferences.offer(room.id, claim, *(draft("둘 중", text, source=source) for text in texts))
        claim = store.claims.enter(person.id, room.id).claim
        store.preferences.choose(room.id, claim, pair.id, "a", pair.a)
    old = read_keys(key)
    capsys.readouterr()
    main_says(["db", "rotate-key", "--database", url, "--key-file", str(key)], code=2)
    assert "the service is running (1 processes). stop it first" in capsys.readouterr().err
    assert read_keys(key) == old
    store.close()
    main_says(["db", "rotate-key", "--database", url, "--key-file", str(key)])
    assert set(old) < set(read_keys(key))  # memories, wherever they are, may need it
    main_says(["db", "rotate-key", "--database", url, "--key-file", str(key), "--run", str(tmp_path)])
    assert not set(read_keys(key)) & set(old)
    sealed = ["--database", url, "--key-file", str(key)]
    # What the model has no part in is not for it to learn.
    (pair,) = Store.open(url, read_keys(key)).preferences.pairs()
    assert (pair.messages[-1]["content"], pair.chosen, pair.rejected) == ("둘 중", "가", "나")
    main_says(["db", "grant-admin", "Minji", "--database", url])
    main_says(["db", "expire", "--days", "0", *sealed])
    assert "erased 3 exchanges" in capsys.readouterr().out
    main_says(["db", "downgrade", "--to", "base", "--database", url])
    main_says(["db", "current", "--database", url])
    assert "at base, newest 0003" in capsys.readouterr().out
    main_says(["db", "expire", "--days", "0", "--database", url.replace("sqlite", "oracle")], code=2)
    assert "not supported" in capsys.readouterr().err


def main_says(arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == code
