"""The conversation on the page, in a real browser: what is newest is seen, and nothing somebody wrote is lost."""

from __future__ import annotations

import pytest
from serve_standin import serving
from store_standin import GOOD, OTHER, make_app
from web_standin import WaitingBackend, chromium, visiting

from pipeline.chat.sentiment import Sentiments
from pipeline.serve.callers import COOKIE

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
GIVEN_UP = """fetch("/metrics").then((answer) => answer.text())
  .then((text) => Number(/^gonggam_cancelled_total (.*)$/m.exec(text)[1]))"""
LONG = " ".join([GOOD, OTHER] * 3)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(address, application, backend) of a running service."""
    backend = WaitingBackend()
    known = Sentiments({"일상": "0", "이별": "1"})
    app = make_app(tmp_path_factory.mktemp("talk"), backend=backend, page=True, hosts=(), sentiments=known)
    with serving(app) as (address, _):
        yield address, app, backend


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def seen(page, selector):
    """Wait until the last such element stands wholly between the window's top and the row where one writes."""
    page.wait_for_function(
        """(selector) => {
          const found = [...document.querySelectorAll(selector)].at(-1)?.getBoundingClientRect();
          const limit = document.querySelector(".composer").getBoundingClientRect();
          const end = limit.height ? Math.min(limit.top, window.innerHeight) : window.innerHeight;
          return found && found.height > 0 && found.top >= 0 && found.bottom <= end + 1;
        }""",
        arg=selector,
        timeout=10_000,
    )


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_newest_is_wholly_seen(service, browser, size):
    address, _, backend = service
    with visiting(browser, address, **size) as visitor:
        page = visitor.page
        visitor.sign_up(f"newest{size['width']}")
        for text in ("하나예요", "둘이에요", "셋이에요", "넷이에요"):
            visitor.say(text)
            seen(page, ".turn")
        backend.go.clear()
        backend.say = [LONG]
        visitor.write("다섯이에요")
        page.wait_for_function("document.querySelector('.bubble[aria-busy] p')?.textContent.length > 3")
        seen(page, ".turn")
        backend.go.set()
        page.locator(".turn .tools").nth(4).wait_for()
        seen(page, ".turn")
        page.reload()
        page.locator(".turn .tools").nth(4).wait_for()
        seen(page, ".turn")
        visitor.tab("말투")
        page.locator(".manner").wait_for()
        visitor.tab("대화")
        seen(page, ".turn")
        page.get_by_label("두 가지 답").check()
        visitor.write("여섯이에요")
        page.locator(".two").wait_for()
        seen(page, ".turn")
        page.get_by_label("두 가지 답").uncheck()
        visitor.say("죽고 싶어요")
        seen(page, ".crisis")
        seen(page, ".tools")
        page.evaluate("scrollTo(0, 0)")
        page.get_by_role("button", name="새 상담 시작하기").click()
        page.get_by_text("어떤 이야기든 괜찮아요").wait_for()
        if size == PHONE:
            page.locator(".rooms summary").click()
        page.locator(".rooms li button").nth(1).click()
        seen(page, ".crisis")
        seen(page, ".tools")


def test_whoever_reads_what_was_said_earlier_is_left_there(service, browser):
    address, _, backend = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("reader")
        for text in ("하나예요", "둘이에요", "셋이에요", "넷이에요"):
            visitor.say(text)
        backend.go.clear()
        backend.say = [LONG]
        visitor.write("다섯이에요")
        page.wait_for_function("document.querySelector('.bubble[aria-busy] p')?.textContent.length > 3")
        page.mouse.move(200, 300)
        page.mouse.wheel(0, -600)
        page.wait_for_function("scrollY + innerHeight < document.scrollingElement.scrollHeight - 500")
        place = page.evaluate("scrollY")
        backend.go.set()
        page.locator(".turn .tools").nth(4).wait_for()
        assert abs(page.evaluate("scrollY") - place) < 3


@pytest.mark.parametrize("way", ["reload", "device"])
def test_two_replies_are_offered_again(service, browser, way):
    address, app, _ = service
    name = f"pair-{way}"
    with visiting(browser, address, **PHONE) as visitor, visiting(browser, address, **DESKTOP) as other:
        visitor.sign_up(name)
        visitor.say("먼저 한 이야기예요")
        visitor.page.get_by_label("두 가지 답").check()
        visitor.write("친구와 다퉜어요")
        visitor.page.locator(".two").wait_for()
        offered = visitor.page.locator(".two section p").all_inner_texts()
        if way == "reload":
            page = visitor.page
            page.reload()
        else:
            page = other.page
            cookies = visitor.page.context.cookies()
            page.context.add_cookies([cookie for cookie in cookies if cookie["name"] == COOKIE])
            other.go("/chat/")
        page.locator(".two").wait_for()
        assert page.locator(".bubble.you p").all_inner_texts() == ["먼저 한 이야기예요", "친구와 다퉜어요"]
        assert page.locator(".two section p").all_inner_texts() == offered
        assert page.get_by_role("button", name="다시 듣기").count() == 0
        page.get_by_role("button", name="둘째 답: 이 답이 좋아요").click()
        page.locator(".turn .tools").nth(1).wait_for()
        assert page.locator(".two").count() == 0
        assert page.locator(".bubble.it p").last.inner_text() == offered[1]
    assert said(app, name) == ["먼저 한 이야기예요", "친구와 다퉜어요"]


def said(app, name):
    """What a user said in the newest room, as the database has it."""
    person, _ = app.state.store.people.find(name)
    room = app.state.store.rooms.of(person.id)[0]
    return [dialog.message for dialog in app.state.store.rooms.dialogs(person.id, room.id)]


def test_whoever_talks_on_keeps_the_first_of_two_replies(service, browser):
    address, app, _ = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("onward")
        page.get_by_label("두 가지 답").check()
        visitor.write("친구와 다퉜어요")
        page.locator(".two").wait_for()
        assert "AI" in page.locator(".turn .note").inner_text()
        first = page.locator(".two section p").first.inner_text()
        page.get_by_label("두 가지 답").uncheck()
        visitor.write("그만 말할래요")
        page.locator(".turn .tools").nth(1).wait_for()
        assert page.locator(".bubble.you p").all_inner_texts() == ["친구와 다퉜어요", "그만 말할래요"]
        assert page.locator(".bubble.it p").first.inner_text() == first
        assert page.locator(".two").count() == 0
    assert said(app, "onward") == ["친구와 다퉜어요", "그만 말할래요"]


def test_what_was_not_sent_stays_with_its_room(service, browser):
    address, app, backend = service
    with visiting(browser, address, **DESKTOP) as visitor:
        page = visitor.page
        field, rooms = page.locator("#message"), page.locator(".rooms li button")
        visitor.sign_up("drafts")
        field.fill("아직 보내지 않은 말")
        page.get_by_role("button", name="새 상담 시작하기").click()
        rooms.nth(1).wait_for()
        page.wait_for_function("document.querySelector('#message').value === ''")
        backend.go.clear()
        visitor.write("답을 기다리던 말")
        page.wait_for_function("document.querySelector('.bubble[aria-busy] p')?.textContent.length > 3")
        before = page.evaluate(GIVEN_UP)
        rooms.nth(1).click()  # the other room: the reply is given up, and the words stay where they were written
        page.wait_for_function("document.querySelector('#message').value === '아직 보내지 않은 말'")
        page.wait_for_function(f"{GIVEN_UP}.then((now) => now !== {before})")
        backend.go.set()
        page.get_by_role("button", name="보내기").click()
        page.locator(".turn .tools").wait_for()
        rooms.nth(0).click()
        page.wait_for_function("document.querySelector('#message').value === '답을 기다리던 말'")
        field.fill("")  # or the browser asks whether to leave
    person, _ = app.state.store.people.find("drafts")
    kept = {len(app.state.store.rooms.dialogs(person.id, room.id)) for room in app.state.store.rooms.of(person.id)}
    assert kept == {0, 1}


def test_a_changed_message_that_is_stopped_is_still_there(service, browser):
    address, app, backend = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("editor")
        visitor.say("죽고 싶어요")  # a long answer, below which the editor must not be lost
        page.get_by_role("button", name="고치기").click()
        seen(page, ".editor")
        page.get_by_role("button", name="지우기").last.click()
        page.locator(".turn").wait_for(state="detached")
        visitor.say("처음 말이에요")
        backend.go.clear()
        page.get_by_role("button", name="고치기").click()
        page.locator(".editor textarea").fill("오래 생각해서 고친 말이에요")
        page.get_by_role("button", name="고쳐서 보내기").click()
        page.wait_for_function("document.querySelector('.bubble[aria-busy] p')?.textContent.length > 3")
        page.get_by_role("button", name="그만 듣기").click()
        page.locator(".editor textarea").wait_for()
        assert page.locator(".editor textarea").input_value() == "오래 생각해서 고친 말이에요"
        assert said(app, "editor") == ["처음 말이에요"]
        backend.go.set()
        page.get_by_role("button", name="고쳐서 보내기").click()
        page.locator(".turn:has-text('오래 생각해서') .tools").wait_for()
    assert said(app, "editor") == ["오래 생각해서 고친 말이에요"]


def test_a_text_that_is_too_long_is_told_of_and_not_cut(service, browser):
    address, app, _ = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("long")
        visitor.write("가" * 20_001)
        page.wait_for_function("!document.querySelector('#message').validity.valid")
        assert page.locator("#message").input_value() == "가" * 20_001
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth && scrollX === 0")
        visitor.say("나" * 20_000)
        seen(page, ".bubble.it")
        seen(page, ".tools")
    assert said(app, "long") == ["나" * 20_000]


def test_whoever_is_logged_out_while_writing_loses_nothing(service, browser):
    address, app, _ = service
    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("expired")
        visitor.say("먼저 한 말이에요")
        cookies = page.context.cookies()
        page.context.clear_cookies()
        visitor.write("로그인이 끝난 뒤의 말")
        assert page.get_by_role("link", name="로그인하기").get_attribute("target") == "_blank"
        assert page.locator("#message").input_value() == "로그인이 끝난 뒤의 말"
        page.context.add_cookies(cookies)
        page.get_by_role("button", name="보내기").click()
        page.locator(".turn .tools").nth(1).wait_for()
        assert page.get_by_role("link", name="로그인하기").count() == 0
        page.context.clear_cookies()
        page.get_by_role("button", name="도움이 됐어요").last.click()  # with nothing to lose
        page.wait_for_url("**/log-in")
    assert said(app, "expired") == ["먼저 한 말이에요", "로그인이 끝난 뒤의 말"]


def test_a_sentiment_can_be_chosen_where_the_model_knows_some(service, browser, tmp_path):
    address, _, backend = service

    def told():
        return backend.asked[-1].messages[-1]["sentiment"]

    with visiting(browser, address, **PHONE) as visitor:
        page = visitor.page
        visitor.sign_up("feeling")
        choice = page.get_by_label("지금 마음")
        assert choice.locator("option").all_inner_texts() == ["자동", "일상", "이별"]
        visitor.say("오늘은 비가 왔어요")
        assert told() == "0"
        choice.select_option("이별")
        visitor.say("어제 헤어졌어요")
        assert told() == "1"
        choice.select_option("자동")
        page.get_by_role("button", name="다시 듣기").click()
        page.locator(".bubble[aria-busy]").wait_for(state="detached")
        page.locator(".turn .tools").nth(1).wait_for()
        assert told() == "0"
        choice.select_option("이별")
        page.get_by_label("두 가지 답").check()
        visitor.write("보고 싶어요")
        page.locator(".two").wait_for()
        assert told() == "1"
    without = make_app(tmp_path, backend=WaitingBackend(), page=True, hosts=())
    with serving(without) as (plain, _), visiting(browser, plain) as visitor:
        visitor.sign_up("plain")
        assert visitor.page.get_by_label("지금 마음").count() == 0
