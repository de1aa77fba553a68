"""A user's memory: isolated, durable, erasable, safe under threads and processes."""

import base64
import os
import signal
import subprocess
import sys
import threading
import zlib
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from gonggam.errors import UserError
from rag.memory import MemoryStore
from rag.options import MemoryOptions
from rag.reseal import reseal

ROOT = Path(__file__).parents[1]


@cache
def letter(c):
    return np.random.default_rng(zlib.crc32(c.encode())).standard_normal(16)


class Letters(Embeddings):
    """Random vectors of a text's syllables, summed: no model, yet like texts are near."""

    def __init__(self, name="letters"):
        self.fingerprint, self.calls = name, 0  # calls: texts embedded as documents

    def embed_query(self, text):
        return np.sum([letter(c) for c in text[:200] or " "], axis=0).tolist()

    def embed_documents(self, texts):
        self.calls += len(texts)
        return [self.embed_query(text) for text in texts]


def store(root, **settings):
    return MemoryStore(root, Letters(), MemoryOptions(**settings))


def on_disk(root):
    """All bytes of all files, and all names."""
    paths = list(Path(root).rglob("*"))
    return b"".join(p.read_bytes() for p in paths if p.is_file()) + "\n".join(map(str, paths)).encode()


def test_recall_finds_what_was_said_and_recent_keeps_the_order(tmp_path):
    minji = store(tmp_path).for_user("minji")
    ids = [minji.add(f"{thing} 이야기", "그랬군요", session="a") for thing in ("강아지", "면접", "언니 결혼식")]
    assert minji.recall("강아지 산책", 1)[0].id == ids[0]
    assert [e.id for e in minji.recent(2, "a")] == ids[1:]
    assert minji.recent(5, "b") == []
    assert ids[0] not in [r.id for r in minji.recall("강아지 산책", 3, exclude=[ids[0]])]
    assert minji.recall("강아지", 0) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "민지", "a" * 5000, "con", ".", "\x00", "\udcff", "-rf"])
def test_any_name_is_safe_and_alone(tmp_path, name):
    root = tmp_path / "root"
    users = store(root)
    users.for_user(name).add("비밀 이야기", "네")
    assert len(users.for_user(name)) == 1
    assert len(users.for_user(name + "x")) == 0
    assert users.for_user(name + "x").recall("비밀", 5) == []
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("name", ["", "  ", None])
def test_no_name_is_an_error(tmp_path, name):
    with pytest.raises(UserError):
        store(tmp_path).for_user(name)


def test_what_was_acknowledged_is_there_after_a_new_start(tmp_path):
    ids = [store(tmp_path).for_user("u").add(f"말 {i}", "네", session="s") for i in range(3)]
    assert [e.id for e in store(tmp_path).for_user("u").recent(9)] == ids


WRITER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_rag_memory import store
memory = store(sys.argv[1], lexical=0).for_user("u")
for i in range(10_000):
    memory.add(f"{{sys.argv[2]}} {{i}}", "네")
    print(i, flush=True)
"""


def writer(root, name="w"):
    code = WRITER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    return subprocess.Popen([sys.executable, "-c", code, str(root), name], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("after", [1, 40])
def test_kill_9_loses_no_acknowledged_exchange(tmp_path, after):
    process = writer(tmp_path)
    for _ in range(after):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.wait()
    memory = store(tmp_path, lexical=0).for_user("u")
    texts = [e.user for e in memory.recent(10**6)]
    assert texts[: acknowledged + 1] == [f"w {i}" for i in range(acknowledged + 1)]
    assert len(texts) <= acknowledged + 2
    assert memory.damaged == 0
    memory.add("다음", "네")
    assert store(tmp_path).for_user("u").recent(1)[0].user == "다음"


def test_two_processes_and_two_threads_of_one_user_lose_nothing(tmp_path):
    processes = [writer(tmp_path, name) for name in ("p", "q")]
    memory = store(tmp_path, lexical=0).for_user("u")
    threads = [
        threading.Thread(target=lambda t=t: [memory.add(f"{t} {i}", "네") for i in range(10)]) for t in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    counts = [[int(p.stdout.readline()) for _ in range(10)][-1] for p in processes]
    for thread in threads:
        thread.join()
    for process in processes:
        process.terminate()
        process.wait()
    texts = [e.user for e in memory.recent(10**6)]
    wanted = {f"{name} {i}" for name in "abpq" for i in range(10)}
    assert counts == [9, 9]
    assert wanted <= set(texts)
    assert len(texts) == len(set(texts))
    assert len(memory.recall("a 3", 100)) == min(len(texts), 100)


OTHER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_rag_memory import store
memory = store(sys.argv[1], lexical=0).for_user("u")
print(len(memory), memory.add("너머에서 온 말", "네"), flush=True)
print([e.user for e in memory.recent(1)][0], memory.recall("나중에 온 말", 1)[0].user, sep="|", flush=True) \
    if sys.stdin.readline() else None
for entry in memory.recent(50):
    memory.forget(entry.id)
    print(entry.id, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_processes_see_each_others_news_and_a_killed_forget_leaves_nothing_half(tmp_path):
    memory = store(tmp_path, lexical=0).for_user("u")
    memory.add_many([(f"말 {i}", "네") for i in range(60)])
    code = OTHER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        count, theirs = other.stdout.readline().split()
        assert int(count) == 60
        assert memory.recall("너머에서 온 말", 1)[0].id == theirs
        memory.add("나중에 온 말", "네")
        before = {entry.id: entry.user for entry in memory.recent(99)}
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline().strip() == "나중에 온 말|나중에 온 말"
        forgotten = [other.stdout.readline().strip() for _ in range(5)]
        other.send_signal(signal.SIGKILL)
        forgotten += [line.strip() for line in other.stdout if line.endswith("\n")]
    after = store(tmp_path, lexical=0).for_user("u")
    left = {entry.id for entry in after.recent(99)}
    gone = set(before) - left
    assert set(forgotten) <= gone
    assert len(gone) <= len(forgotten) + 1  # the one that was being forgotten is there or gone, never half
    assert after.damaged == 0
    assert not any(f'"{before[id]}"'.encode() in on_disk(tmp_path) for id in gone)
    assert {entry.id for entry in memory.recent(99)} == left


def test_who_was_erased_elsewhere_does_not_come_back_with_the_index(tmp_path):
    here, elsewhere = store(tmp_path, lexical=0), store(tmp_path, lexical=0)
    here.for_user("u").add("비밀 이야기", "네")
    for name in ("u", "who never said a word"):
        elsewhere.forget(name)
    here.close()
    assert list(tmp_path.glob("users/*/*")) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path):
    import resource

    memory = store(tmp_path, lexical=0).for_user("u")
    memory.add("처음 말", "네")
    log = next(tmp_path.rglob("exchanges.jsonl"))
    before, limits = log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))  # half a line fits
    try:
        with pytest.raises(UserError):
            memory.add("들어가지 못할 말", "네" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_bytes() == before
    assert [e.user for e in memory.recent(9)] == ["처음 말"]
    memory.add("다음 말", "네")
    assert [e.user for e in store(tmp_path).for_user("u").recent(9)] == ["처음 말", "다음 말"]


def torn(path):
    path.write_bytes(path.read_bytes() + b'{"id": "torn", "user": "')


def garbled(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff\xfe not json\n" + b"".join(lines[1:]))


def headless(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(("damage", "kept"), [(torn, 3), (garbled, 3), (headless, 3)])
def test_a_damaged_log_gives_what_can_be_read(tmp_path, damage, kept):
    memory = store(tmp_path).for_user("u")
    for i in range(3):
        memory.add(f"말 {i}", "네")
    damage(next(tmp_path.rglob("exchanges.jsonl")))
    again = store(tmp_path).for_user("u")
    assert len(again) == kept
    again.add("새 말", "네")
    assert len(store(tmp_path).for_user("u")) == kept + 1


@pytest.mark.parametrize("name", ["index.faiss", "documents.jsonl", "store.json"])
def test_a_damaged_index_is_rebuilt_from_the_log(tmp_path, name):
    first = store(tmp_path)
    first.for_user("u").add("강아지 산책", "네")
    first.for_user("u").add("면접 준비", "네")
    before = [r.user for r in first.for_user("u").recall("면접", 2)]
    first.close()
    next(tmp_path.rglob(name)).write_bytes(b"{}")
    second = store(tmp_path)
    assert [r.user for r in second.for_user("u").recall("면접", 2)] == before


def test_a_saved_index_spares_embedding_and_another_embedder_rebuilds_it(tmp_path):
    first = store(tmp_path)
    first.for_user("u").add("강아지", "네")
    first.close()
    same, other = Letters(), Letters("other")
    assert len(MemoryStore(tmp_path, same).for_user("u")) == 1
    assert same.calls == 0
    assert len(MemoryStore(tmp_path, other).for_user("u")) == 1
    assert other.calls > 0


def test_other_settings_that_change_the_index_rebuild_it(tmp_path):
    first = store(tmp_path, reply_context=0.0)
    first.for_user("u").add("가", "강아지")
    first.close()
    embedder = Letters()
    users = MemoryStore(tmp_path, embedder, MemoryOptions(reply_context=1.0))
    assert users.for_user("u").recall("강아지", 1)[0].score > 0
    assert embedder.calls > 0


def test_a_forgotten_exchange_is_nowhere_on_disk_nor_its_vector(tmp_path):
    users = store(tmp_path)
    memory = users.for_user("u")
    secret = memory.add("비밀번호는 수박이야", "알겠어요 수박")
    kept = memory.add("면접 준비", "네")
    users.close()
    other_process = store(tmp_path).for_user("u")
    assert len(other_process) == 2
    memory = store(tmp_path).for_user("u")
    assert len(memory) == 2
    (next(tmp_path.rglob("exchanges.jsonl")).parent / ".exchanges.jsonl.killed").write_text("수박")
    vector = memory._index.store.vectors()[0].astype(np.float32).tobytes()
    assert vector in on_disk(tmp_path)
    assert memory.forget(secret)
    assert not memory.forget(secret)
    disk = on_disk(tmp_path)
    assert "수박".encode() not in disk
    assert secret.encode() not in disk
    assert vector not in disk
    assert [r.id for r in memory.recall("비밀번호 수박", 5)] == [kept]
    assert [e["id"] for e in memory.export()["exchanges"]] == [kept]
    assert [e.id for e in other_process.recent(9)] == [kept]
    assert memory.add("다음", "네") in [e.id for e in other_process.recent(9)]


def test_a_forgotten_user_leaves_no_file_and_others_stay(tmp_path):
    users = store(tmp_path)
    users.for_user("minji").add("수박", "네")
    users.for_user("jiwoo").add("참외", "네")
    users.close()
    users.for_user("minji").forget_all()
    users.close()
    assert "수박".encode() not in on_disk(tmp_path)
    assert len(list(tmp_path.rglob("exchanges.jsonl"))) == 1
    assert [e.user for e in users.for_user("jiwoo").recent(1)] == ["참외"]
    assert users.for_user("minji").recent(1) == []
    users.for_user("minji").add("다시", "네")
    assert len(users.for_user("minji")) == 1


def test_retention_erases_what_is_too_old(tmp_path):
    old, now = datetime.now(UTC) - timedelta(days=40), datetime.now(UTC)
    memory = store(tmp_path).for_user("u")
    memory.add("오래된 수박", "네", when=old)
    memory.add("새 참외", "네", when=now)
    assert [e.user for e in store(tmp_path, retention_days=30).for_user("u").recent(9)] == ["새 참외"]
    assert "수박".encode() not in on_disk(tmp_path)
    store(tmp_path).for_user("absent").add("옛 포도", "네", when=old)
    assert store(tmp_path, retention_days=30).expire() == 1
    assert "포도".encode() not in on_disk(tmp_path)


def test_newer_memories_win_when_memories_fade(tmp_path):
    now = datetime(2026, 6, 1, tzinfo=UTC)
    fading, lasting = store(tmp_path / "a", half_life_days=30), store(tmp_path / "b")
    for users in (fading, lasting):
        users.for_user("u").add("회사 이야기", "네", when=now - timedelta(days=300))
        users.for_user("u").add("회사 새 이야기", "네", when=now)
    assert fading.for_user("u").recall("회사 이야기", 1, now=now)[0].user == "회사 새 이야기"
    assert lasting.for_user("u").recall("회사 이야기", 1, now=now)[0].user == "회사 이야기"


def test_the_threshold_recalls_nothing_for_something_new(tmp_path):
    memory = store(tmp_path).for_user("u")
    memory.add("강아지 산책", "네")
    score = memory.recall("강아지 산책", 1)[0].score
    assert 0 < score <= 1
    assert memory.recall("강아지 산책", 1, threshold=score)
    assert memory.recall("강아지 산책", 1, threshold=min(score + 0.01, 1)) == []


@pytest.mark.parametrize("fusion", ["sum", "rrf"])
def test_words_alone_find_a_memory_the_vectors_miss(tmp_path, fusion):
    class Blind(Letters):
        def embed_query(self, text):
            return [1.0, 0.0]

    memory = MemoryStore(tmp_path, Blind(), MemoryOptions(fusion=fusion)).for_user("u")
    for i in range(5):
        memory.add(f"날씨 {i}", "네")
    memory.add("강아지 산책", "네")
    assert memory.recall("강아지 밥", 1)[0].user == "강아지 산책"


def test_a_reranker_has_the_last_word(tmp_path):
    def longest(query, texts):
        return [len(text) for text in texts]

    memory = MemoryStore(tmp_path, Letters(), reranker=longest).for_user("u")
    memory.add("강아지", "네")
    memory.add("아주 긴 다른 이야기", "네")
    assert memory.recall("강아지", 1)[0].user == "아주 긴 다른 이야기"


def test_a_store_erases_a_user_and_needs_a_folder(tmp_path):
    users = store(tmp_path / "memory")
    users.ready()
    users.for_user("민지").add("강아지", "네")
    users.for_user("u").add("고양이", "네")
    users.forget("민지")
    assert users.loaded == 1
    assert "강아지".encode() not in on_disk(tmp_path)
    assert [e.to_dict()["user"] for e in users.for_user("u").recall("고양이", 1)] == ["고양이"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="part of this path is a file"):
        store(tmp_path / "file").ready()


def test_a_mark_holds_no_words_and_is_never_recalled(tmp_path):
    memory = store(tmp_path).for_user("u")
    memory.add("강아지", "네", session="a")
    memory.mark({"risk": "high"}, session="a")
    assert [e.user for e in memory.recall("강아지", 5)] == ["강아지"]
    assert [e.user for e in store(tmp_path).for_user("u").recall("강아지", 5)] == ["강아지"]


def test_only_so_many_users_are_loaded_and_none_is_lost(tmp_path):
    users = store(tmp_path, max_loaded_users=3)
    held = users.for_user("0")
    for i in range(8):
        users.for_user(str(i)).add(f"말 {i}", "네")
    held.add("밀려난 뒤", "네")
    assert users.loaded == 3
    assert [users.for_user(str(i)).recent(1)[0].user for i in range(1, 8)] == [f"말 {i}" for i in range(1, 8)]
    assert [e.user for e in users.for_user("0").recent(9)] == ["말 0", "밀려난 뒤"]


@pytest.mark.parametrize(
    "text", ["", " ", "😀" * 50, "ㅠ" * 100_000, "\x00\x1b[31m", "\udc80", "hello", "a\nb\r\u2028c"]
)
def test_odd_texts_are_remembered_as_they_are(tmp_path, text):
    memory = store(tmp_path).for_user("u")
    memory.add(text, text)
    shown = text.encode("utf-8", "replace").decode()
    again = store(tmp_path).for_user("u")
    assert (again.recent(1)[0].user, again.recent(1)[0].reply) == (shown, shown)
    again.recall(text, 1)


def test_an_embedder_that_fails_leaves_nothing_half_remembered(tmp_path):
    class Failing(Letters):
        def embed_documents(self, texts):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        MemoryStore(tmp_path, Failing()).for_user("u").add("말", "네")
    assert len(store(tmp_path).for_user("u")) == 0


def test_a_folder_that_may_not_be_written_is_a_user_error(tmp_path):
    (tmp_path / "root").write_text("a file, no folder")
    with pytest.raises(UserError):
        store(tmp_path / "root").for_user("u").add("말", "네")


class Shift:
    """A seal that tells which key it used; opens with any of its keys. No secret, but no plain text either."""

    def __init__(self, *keys):
        self.keys = keys

    def encrypt(self, data):
        return b"%d." % self.keys[0] + base64.urlsafe_b64encode(bytes(b ^ self.keys[0] for b in data))

    def decrypt(self, sealed):
        key, _, body = sealed.partition(b".")
        if not key.isdigit() or int(key) not in self.keys:
            raise UserError("sealed with another key")
        try:
            return bytes(b ^ int(key) for b in base64.b64decode(body, altchars=b"-_", validate=True))
        except ValueError as error:
            raise UserError("damaged") from error


def sealed_store(root, *keys):
    return MemoryStore(root, Letters(), MemoryOptions(lexical=0), seal=Shift(*keys) if keys else None)


def remember_and_save(users, *texts):
    memory = users.for_user("u")
    for text in texts:
        memory.add(text, "무지개비빔밥 답")
    users.close()
    return [e.user for e in memory.recent(99)]


def in_the_open(root):
    """Whether words, ids or raw vectors of a memory can be read off its files."""
    signs = "초코파이".encode(), "무지개비빔밥".encode(), b"\\ucd08", b'"user"', b'"id"', b"IxFI"
    found = on_disk(root)
    return any(sign in found for sign in signs)


def test_sealed_memories_show_nothing_and_are_recalled_forgotten_and_exported(tmp_path):
    users = sealed_store(tmp_path, 7)
    assert remember_and_save(users, "초코파이 하나", "초코파이 둘") == ["초코파이 하나", "초코파이 둘"]
    assert (folder_of(tmp_path) / "index" / "index.faiss").exists()
    assert not in_the_open(tmp_path)
    again = sealed_store(tmp_path, 7)
    memory = again.for_user("u")
    first = memory.recall("초코파이 하나", 1)[0]
    assert (first.user, again.embedder.calls) == ("초코파이 하나", 0)  # the saved vectors were read, too
    assert memory.forget(first.id)
    assert [e["user"] for e in memory.export()["exchanges"]] == ["초코파이 둘"]
    assert not in_the_open(tmp_path)
    again.forget("u")
    assert not list(tmp_path.glob("users/*/*"))


@pytest.mark.parametrize("keys", [(), (8,)])
def test_another_key_or_none_is_told_and_nothing_is_lost(tmp_path, keys):
    remember_and_save(sealed_store(tmp_path, 7), "초코파이")
    before = on_disk(folder_of(tmp_path))
    memory = sealed_store(tmp_path, *keys).for_user("u")
    for use in (lambda: memory.add("다음", "네"), lambda: memory.forget("x"), memory.export, lambda: memory.recent(1)):
        with pytest.raises(UserError, match="key"):
            use()
    assert on_disk(folder_of(tmp_path)) == before


def test_a_damaged_line_among_sealed_ones_is_passed_over(tmp_path):
    remember_and_save(sealed_store(tmp_path, 7), "하나", "둘", "셋")
    log = folder_of(tmp_path) / "exchanges.jsonl"
    head, one, two, three = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(head + one + two[:20] + b"!" + two[21:] + three)
    memory = sealed_store(tmp_path, 7).for_user("u")
    assert [e.user for e in memory.recent(9)] == ["하나", "셋"]
    assert memory.damaged == 1


def test_a_key_is_given_later_and_changed(tmp_path):
    said = remember_and_save(sealed_store(tmp_path), "초코파이 하나")
    assert in_the_open(tmp_path)
    said = remember_and_save(sealed_store(tmp_path, 7), "초코파이 둘")  # read beside what was written without a key
    assert said == ["초코파이 하나", "초코파이 둘"]
    running = sealed_store(tmp_path, 9, 7).for_user("u")
    assert [e.user for e in running.recent(9)] == said
    for keys in ((7,), (9, 7)):
        assert reseal(tmp_path, Shift(*keys)) == 1
        assert not in_the_open(tmp_path)
    assert [e.user for e in running.recent(9)] == said  # another process sees that the file is another one
    last = sealed_store(tmp_path, 9)
    assert [e.user for e in last.for_user("u").recent(9)] == said
    assert last.embedder.calls == 0
    with pytest.raises(UserError, match="key"):
        reseal(tmp_path, Shift(5))
    assert [e.user for e in sealed_store(tmp_path, 9).for_user("u").recent(9)] == said


def test_a_key_is_changed_where_an_index_is_missing_or_damaged(tmp_path):
    assert reseal(tmp_path, Shift(9, 7)) == 0  # nobody is here yet
    remember_and_save(sealed_store(tmp_path, 7), "하나")
    damaged = folder_of(tmp_path) / "index" / "documents.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    sealed_store(tmp_path, 7).for_user("v").add("둘", "네")  # its index was never saved
    (tmp_path / "users" / "ab" / ("ab" * 32)).mkdir(parents=True)  # of a user whose erasure was cut off
    assert reseal(tmp_path, Shift(9, 7)) == 3
    assert not damaged.exists()  # else words under the old key would stay
    last = sealed_store(tmp_path, 9)
    assert [last.for_user(name).recall("하나나 둘", 1)[0].user for name in ("u", "v")] == ["하나", "둘"]


def folder_of(root):
    (folder,) = root.glob("users/*/*")
    return folder
