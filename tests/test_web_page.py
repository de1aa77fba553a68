"""The page in a real browser: a whole journey, the keyboard, hostile text, who can read it, two workers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from serve_standin import serving
from store_standin import GOOD, OTHER, PASSWORD, holding, make_app
from web_standin import WaitingBackend, chromium, visiting

from pipeline.serve.callers import COOKIE
from pipeline.serve.store.records import Draft

PHONE = {"width": 390, "height": 844}
HOSTILE = '<img src=x onerror="window.hit=1"> **별** [x](javascript:alert) ${window.hit=1} `{{window.hit=1}}` $$x$$'


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(address, application, backend, folder) of a running service."""
    folder, backend = tmp_path_factory.mktemp("page"), WaitingBackend()
    app = make_app(folder, backend=backend, page=True, hosts=())
    with serving(app) as (address, _):
        yield address, app, backend, folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def dialogs(app, name):
    """What the database holds of a user's newest room."""
    person, _ = app.state.store.people.find(name)
    room = app.state.store.rooms.of(person.id)[0]
    return person, room, app.state.store.rooms.dialogs(person.id, room.id)


def test_a_whole_journey_on_a_phone(service, browser):
    address, app, backend, folder = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("minji", training=True)
        assert "치료를 대신할 수 없어요" in page.locator(".top").inner_text()

        stop_a_reply(visitor, backend, app)
        assert visitor.say("면접에서 떨어졌어요 제주도") in (GOOD, OTHER)
        answer_anew_and_edit(visitor, app)
        rate(visitor, app)
        change_manner(visitor, backend)
        choose_between_two(visitor, app)
        crisis(visitor)
        moods(visitor)
        forget_a_note(visitor, app)
        export(visitor)

        visitor.go("/chat/")
        page.get_by_role("button", name="상담 마치기").click()
        page.get_by_text("마친 상담이에요").wait_for()
        assert page.locator("#message").is_hidden()
        page.locator(".rooms summary").click()
        page.locator(".rooms .ended").wait_for()
        page.get_by_role("button", name="새 상담 시작하기").click()
        page.locator("#message").wait_for()
        assert page.locator(".rooms li").count() == 2

        visitor.go("/account")
        page.get_by_label("지우시려면").fill("모두 지우기")
        page.locator("form[action$=leave] [name=password]").fill(PASSWORD)
        page.locator("form[action$=leave] .bad").click()
        page.get_by_role("heading", name="모두 지웠어요").wait_for()
        visitor.go("/chat/")
        assert page.url == f"{address}/log-in"
    assert app.state.store.people.find("minji") is None
    assert holding(folder, "제주도") == []


def stop_a_reply(visitor, backend, app):
    """A reply is read as it comes; stopped, it is not kept, and the words are back in the field."""
    page = visitor.page
    backend.go.clear()
    visitor.write("멈출 이야기예요")
    page.wait_for_function("document.querySelector('.bubble[aria-busy] p')?.textContent.length > 3")
    page.get_by_role("button", name="그만 듣기").click()
    page.get_by_text("멈췄어요").wait_for()
    assert page.locator("#message").input_value() == "멈출 이야기예요"
    assert page.locator(".turn").count() == 0
    assert dialogs(app, "minji")[2] == []
    backend.go.set()


def answer_anew_and_edit(visitor, app):
    page = visitor.page
    before = dialogs(app, "minji")[2][-1]
    page.get_by_role("button", name="다시 듣기").click()
    page.locator(f".turn[data-id]:not([data-id='{before.id}'])").wait_for()
    assert dialogs(app, "minji")[2][-1].reply != before.reply
    page.get_by_role("button", name="고치기").click()
    page.locator(".editor textarea").fill("면접 결과가 아쉬웠어요 제주도")
    page.get_by_role("button", name="고쳐서 보내기").click()
    page.locator(".turn:has-text('아쉬웠어요') .tools").wait_for()
    (only,) = dialogs(app, "minji")[2]
    assert only.message == "면접 결과가 아쉬웠어요 제주도"


def rate(visitor, app):
    page = visitor.page
    page.get_by_role("button", name="도움이 됐어요").click()
    page.locator("[aria-pressed=true]").wait_for()
    assert dialogs(app, "minji")[2][-1].rating == 1


def change_manner(visitor, backend):
    page = visitor.page
    visitor.tab("말투")
    page.get_by_label("할아버지").check()
    page.locator(".manner h2", has_text="할아버지").wait_for()
    assert page.locator(".manner .styled").count() == 2
    visitor.tab("대화")
    visitor.say("잠이 잘 안 와요")
    assert "할아버지" in backend.asked[-1].messages[0]["content"]


def choose_between_two(visitor, app):
    page = visitor.page
    page.get_by_label("두 가지 답").check()
    visitor.write("친구와 다퉜어요")
    page.locator(".two").wait_for()
    taken = page.locator(".two section").nth(1).locator("p").inner_text()
    page.locator(".two button").nth(1).click()
    page.locator(".turn:has-text('다퉜어요') .tools").wait_for()
    page.get_by_label("두 가지 답").uncheck()
    assert dialogs(app, "minji")[2][-1].reply == taken
    (pair,) = app.state.store.preferences.pairs()
    assert pair.chosen == taken != pair.rejected


def crisis(visitor):
    visitor.say("죽고 싶어요")
    links = visitor.page.locator(".crisis a")
    assert [link.get_attribute("href") for link in links.all()] == [
        f"tel:{number}" for number in ("109", "1577-0199", "1388", "119", "112")
    ]


def moods(visitor):
    page = visitor.page
    visitor.tab("마음 흐름")
    page.locator(".moods svg").wait_for()
    assert page.locator(".moods svg circle").count() == 4
    assert "이 상담에서" in page.locator(".moods svg").get_attribute("aria-label")


def forget_a_note(visitor, app):
    page = visitor.page
    visitor.tab("기억")
    notes = page.locator(".notes li:has(button)")
    notes.first.wait_for()
    kept, gone = notes.count(), notes.first.locator("p").inner_text()
    notes.first.get_by_role("button", name="이건 잊어 주세요").click()
    page.wait_for_function(f"document.querySelectorAll('.notes li button').length == {kept - 1}")
    person = dialogs(app, "minji")[0]
    remembered = app.state.counselor.export(json.dumps([person.id, ""]))["exchanges"]
    assert len(remembered) == kept - 1
    assert gone not in [row["user"] for row in remembered]


def export(visitor):
    visitor.go("/account")
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("link", name="내려받기").click()
    told = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert told["rooms"][0]["dialogs"][0]["message"] == "면접 결과가 아쉬웠어요 제주도"
    assert download.value.suggested_filename == "gonggam.json"


@pytest.fixture(scope="module")
def long_talk(service):
    """Cookie of somebody with sixty rooms and 120 exchanges in the newest of them."""
    state = service[1].state
    person = state.accounts.sign_up("hana", PASSWORD, address="", training=False)
    for number in range(60):
        room = state.store.rooms.start(person.id, "기본", f"{number}번째 상담").id
    for number in range(120):
        claim = state.store.claims.enter(person.id, room).claim
        said = Draft(message=f"{number}번째 이야기", reply=GOOD, source="model", risk="none", character="기본")
        state.store.rooms.write(room, claim, said)
    return {"name": COOKIE, "value": state.accounts.log_in("hana", PASSWORD, address="").token, "url": service[0]}


def test_older_messages_and_rooms_come_on_demand_by_keyboard(service, browser, long_talk):
    address, app, _, _ = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        page.context.add_cookies([long_talk])
        visitor.go("/chat/")
        turns, older = page.locator(".turn"), page.get_by_role("button", name="이전 대화 더 보기")
        turns.nth(49).wait_for()
        older.focus()
        first = turns.first.get_attribute("data-id")
        place = page.locator(f"[data-id='{first}']").bounding_box()["y"]
        page.keyboard.press("Enter")
        turns.nth(99).wait_for()
        assert abs(page.locator(f"[data-id='{first}']").bounding_box()["y"] - place) < 3
        page.keyboard.press("Enter")
        turns.nth(119).wait_for()
        assert [text.split()[0] for text in page.locator(".bubble.you p").all_inner_texts()] == [
            f"{number}번째" for number in range(120)
        ]
        assert older.is_hidden()
        assert page.evaluate("document.activeElement.textContent").startswith("나0번째")

        page.locator(".rooms summary").click()
        rooms = page.locator(".rooms li button")
        assert rooms.count() == 50
        page.get_by_role("button", name="지난 상담 더 보기").click()
        rooms.nth(59).click()
        page.get_by_text("어떤 이야기든 괜찮아요").wait_for()
        assert page.locator(".rooms .here").inner_text() == "0번째 상담"
        assert rooms.count() == 60
    assert len(dialogs(app, "hana")[2]) == 120


def test_a_room_gets_a_name_and_all_talks_are_erased(service, browser):
    address, app, _, folder = service
    with visiting(browser, address, **PHONE, touch=True) as visitor:
        page = visitor.page
        visitor.sign_up("eraser")
        page.locator("#message").fill("울릉도 이야기예요")
        page.keyboard.press("Enter")  # a new line, where there is no Shift
        assert page.locator("#message").input_value() == "울릉도 이야기예요\n"
        page.get_by_role("button", name="보내기").click()
        page.locator(".turn .tools").wait_for()
        page.get_by_role("button", name="도움이 됐어요").click()
        page.get_by_role("button", name="이름 바꾸기").click()
        page.get_by_label("이 상담의 이름").fill("울릉도 다녀온 날")
        page.keyboard.press("Enter")
        page.locator(".rooms .here", has_text="울릉도 다녀온 날").wait_for()
        person, room, _ = dialogs(app, "eraser")
        assert room.title == "울릉도 다녀온 날"
        assert holding(folder, "울릉도") != []

        visitor.go("/account")
        page.get_by_label("되살릴 수 없다는 것을 알아요").last.check()
        page.get_by_role("button", name="대화 모두 지우기").click()
        page.get_by_text("대화를 모두 지웠어요").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        visitor.go("/chat/")
        page.get_by_text("어떤 이야기든 괜찮아요").wait_for()
    assert app.state.store.people.find("eraser")
    assert app.state.store.insight.emotions(person.id) == []
    assert holding(folder, "울릉도") == []


def test_whoever_was_logged_out_or_cut_off_is_told(service, browser):
    address, _, _, _ = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("offline")
        page.route("**/*api/**", lambda route: route.abort())
        visitor.write("전철이 터널에 들어갔어요")
        page.get_by_text("답을 가져오지 못했어요").wait_for()
        assert page.locator("#message").input_value() == "전철이 터널에 들어갔어요"
        visitor.tab("기억")
        page.get_by_text("지금은 보여 드리지 못했어요").wait_for()
        assert page.get_by_text("아직 기억하는 이야기가 없어요").count() == 0
        assert page.locator(".toast-wrap").is_hidden()
        page.unroute("**/*api/**")  # the page comes back by itself
        page.locator("#trouble").wait_for(state="hidden")
        page.locator("#message").wait_for()
        visitor.tab("마음 흐름")
        page.locator(".moods").wait_for()
        page.context.clear_cookies()
        visitor.tab("말투")
        visitor.tab("기억")
        page.wait_for_url("**/log-in")


def test_the_keyboard_is_enough(service, browser):
    address, app, _, _ = service
    with visiting(browser, address) as visitor:
        page = visitor.page
        visitor.sign_up("keyboard")
        reach(page, "#message")
        page.keyboard.type("첫 줄")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("둘째 줄")
        page.keyboard.press("Enter")
        page.locator(".turn .tools").wait_for()
        assert dialogs(app, "keyboard")[2][0].message == "첫 줄\n둘째 줄"
        reach(page, "[aria-label='아쉬워요']", back=True)
        page.keyboard.press("Space")
        page.locator("[aria-label='아쉬워요'][aria-pressed=true]").wait_for()
        reach(page, "[role=tab][aria-selected=true]", back=True)


def reach(page, selector, *, back=False):
    """Press Tab until the element has the focus, and see that the focus can be seen."""
    for _ in range(40):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def test_what_anybody_writes_stays_text(service, browser):
    address, app, backend, _ = service
    with visiting(browser, address) as visitor:
        page = visitor.page
        visitor.sign_up("hostile")
        backend.say = [f"그러셨군요. {HOSTILE}"]
        visitor.say(HOSTILE)
        person, room, (said,) = dialogs(app, "hostile")
        app.state.store.rooms.change(person.id, room.id, title=HOSTILE, character=None)
        visitor.go("/chat/")
        page.locator(".turn .tools").wait_for()
        assert page.locator(".bubble p").all_inner_texts() == [HOSTILE, said.reply]
        assert page.locator(".rooms li button").inner_text() == HOSTILE
        visitor.tab("기억")
        if app.state.counselor.export(json.dumps([person.id, ""]))["exchanges"]:
            page.locator(".notes li p").wait_for()
        assert page.evaluate("window.hit") is None
        assert page.locator("#columns img, #columns strong, #columns .katex").count() == 0


@pytest.mark.parametrize(("dark", "size"), [(False, PHONE), (True, {"width": 1280, "height": 800})])
def test_everybody_can_read_it(service, browser, dark, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    address, _, _, _ = service
    with visiting(browser, address, dark=dark, **size) as visitor:
        page = visitor.page

        def check(where):
            found = axe.run(page).response["violations"]
            bad = [v for v in found if v["impact"] in ("serious", "critical")]
            assert [(v["id"], v["nodes"][0]["html"]) for v in bad] == [], where

        visitor.go("/log-in")
        check("log-in")
        visitor.sign_up(f"reader{int(dark)}")
        visitor.say("죽고 싶어요")
        check("talk")
        for name in ("말투", "마음 흐름", "기억"):
            visitor.tab(name)
            page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for()
            check(name)
        visitor.go("/account")
        check("account")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_two_workers_serve_one_page(service, browser):
    """Requests of one page go to two applications in turn, which share nothing but the database and the memory."""
    address, app, _, folder = service
    other = make_app(folder, backend=WaitingBackend(), page=True, hosts=(), origins=(address,))
    turn = itertools.cycle([0, 1])
    with serving(other) as (second, _), visiting(browser, address) as visitor:

        def send_on(route):
            url = route.request.url.replace(address, second) if next(turn) else route.request.url
            route.continue_(url=url)

        visitor.page.route("**/chat/gradio_api/**", send_on)
        visitor.page.route("**/api/**", send_on)
        visitor.sign_up("workers")
        for text in ("하나예요", "둘이에요", "셋이에요"):
            visitor.say(text)
        visitor.tab("마음 흐름")
        visitor.page.locator(".moods svg").wait_for()
        visitor.tab("기억")
        visitor.page.locator(".notes li button").nth(2).wait_for()
        visitor.page.get_by_role("button", name="새 상담 시작하기").click()
        visitor.page.locator(".rooms li").nth(1).wait_for()
    person, _, _ = dialogs(app, "workers")
    store = app.state.store
    said = [d.message for room in store.rooms.of(person.id) for d in store.rooms.dialogs(person.id, room.id)]
    assert said == ["하나예요", "둘이에요", "셋이에요"]
