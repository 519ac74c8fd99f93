"""Acts in the console: each command has a form, and nothing acts without a session, from elsewhere, or twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mimids.ds.commands import COMMANDS, ArgumentKind, Command
from mimids.ds.operator_sessions import FORM_SECONDS, LINK_SECONDS, SESSION_SECONDS
from mimids.http.console import forms
from mimids.http.console.requests import TOKEN
from mimids.testing.clock import MovableClock
from tests.support.consoles import Browser, links, parsed, texts
from tests.support.doubles import stopped_clock
from tests.support.inmemory import Answered
from tests.support.provider import Assembled
from tests.support.stored import provider, rows

ADD = "/console/commands/user/add"
ACTING = [each for each in COMMANDS if each.writes]


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[tuple[Assembled, MovableClock, Browser]]:
    """Run a provider with the user alice and her phone, and a browser with a session."""
    async with provider(directory, federation={"allow": ["b.example"]}) as (running, clock):
        yield running, clock, await Browser.with_session(running)


async def users(running: Assembled) -> list[str]:
    found = await rows(running, "SELECT user_id FROM users ORDER BY id")
    return [user_id.decode().rpartition("/")[2] for (user_id,) in found]


async def audited(running: Assembled) -> list[tuple[str, str]]:
    return [(actor, command) for actor, command in await rows(running, "SELECT actor, command FROM audit ORDER BY id")]


def code(answer: Answered) -> str:
    """Return the reason that the page of a refusal names."""
    return texts(parsed(answer.body).findall(".//main")[0])[-1]


# --- who may ----------------------------------------------------------------------------------------------------


async def test_an_act_is_done_once_and_recorded_with_its_session(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        fields = await browser.form(ADD)
        done = await browser.post(ADD, {**fields, "name": "bob"})
        assert done.status == 200
        assert "Done." in texts(done.body)
        assert await users(running) == ["alice", "bob"]
        ((actor, command),) = await audited(running)
        assert command == "user add"
        assert actor == f"console {parsed(done.body).findall('.//footer//code')[0].text}"
        again = await browser.post(ADD, {**fields, "name": "carol"})
        assert (again.status, code(again)) == (403, "old-form")
        assert await users(running) == ["alice", "bob"]


async def test_no_act_without_session_from_another_origin_or_with_an_old_token(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, clock, _):
        for command in ACTING:
            await refuse_all(running, clock, command)
        assert await audited(running) == []


async def refuse_all(running: Assembled, clock: MovableClock, command: Command) -> None:
    """Send a valid form of a command in each way that must be refused."""
    path = f"/console/commands/{command.name.replace(' ', '/')}"
    filled = {name: str(value) for name, value in command.sample().items()}
    stranger, browser, other = Browser.on(running), *[await Browser.with_session(running) for _ in range(2)]

    async def refused(by: Browser, fields: dict[str, str], **headers: str) -> str:
        answer = await by.post(path, {**fields, **filled}, **headers)
        assert answer.status == 403, command.name
        return code(answer)

    assert await refused(stranger, await browser.form(path)) == "no-session"
    for origin in ("http://evil.example", "http://localhost:8445", "https://localhost", "null", ""):
        assert await refused(browser, await browser.form(path), origin=origin) == "foreign-origin"
    assert await refused(browser, await browser.form(path), sec_fetch_site="cross-site") == "foreign-origin"
    assert await refused(browser, {}) == "old-form"
    assert await refused(browser, {TOKEN: "made-up"}) == "old-form"
    assert await refused(browser, await other.form(path)) == "old-form"
    of_other_form = "/console/commands/user/add" if command.name != "user add" else "/console/commands/user/remove"
    assert await refused(browser, await browser.form(of_other_form)) == "old-form"
    late = await browser.form(path)
    clock.advance(FORM_SECONDS)
    assert await refused(browser, late) == "old-form"
    last = await browser.form(path)
    clock.advance(SESSION_SECONDS)
    assert await refused(browser, last) == "no-session"


async def test_an_act_is_only_posted_and_only_as_a_form(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        fields = await browser.form(ADD)
        token = fields[TOKEN]
        assert (await browser.get(f"{ADD}?name=bob&{TOKEN}={token}&run=yes")).status == 200
        for kind in ("multipart/form-data; boundary=x", "application/json", "text/plain"):
            answer = await browser.post(ADD, {**fields, "name": "bob"}, content_type=kind)
            assert (answer.status, code(answer)) == (415, "unsupported-media-type")
        reading = await browser.post("/console/commands/user/list", fields)
        assert (reading.status, reading.headers["allow"]) == (405, "GET")
        assert await users(running) == ["alice"]


async def test_without_a_session_a_form_can_be_read_but_not_sent(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        page = parsed((await Browser.on(running).get(ADD)).body)
        assert page.findall(".//fieldset")[0].attrib["disabled"]
        assert next(each.attrib["value"] for each in page.iter("input") if each.attrib["name"] == TOKEN) == ""
        assert any("mimids console" in text for text in texts(page))


async def test_too_large_a_form_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        fields = await browser.form(ADD)
        answer = await browser.post(ADD, {**fields, "users": "u" * (5 << 20)})
        assert answer.status == 413
        assert await users(running) == ["alice"]


# --- sessions ---------------------------------------------------------------------------------------------------


async def test_a_link_opens_one_session_whose_cookie_scripts_and_other_sites_do_not_get(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        secret, _ = running.services.operator_sessions.new_link()
        browser = Browser.on(running)
        path = f"/console/enter?secret={secret}"
        assert (await browser.client.ask("HEAD", path)).status == 405
        assert (await browser.get(path, sec_purpose="prefetch;prerender")).status == 405
        entered = await browser.get(path)
        assert (entered.status, entered.headers["location"]) == (303, "/console")
        cookie = entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/console"} <= set(cookie.split("; "))
        again = await browser.get(path)
        assert (again.status, code(again)) == (403, "old-link")
        assert "set-cookie" not in again.headers
        late, _ = running.services.operator_sessions.new_link()
        clock.advance(LINK_SECONDS)
        assert code(await browser.enter(late)) == "old-link"
        assert secret not in str(running.log.lines)


async def test_two_providers_on_one_machine_have_cookies_of_their_own(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        names = []
        for host in ("127.0.0.1:8445", "127.0.0.1:9445", "[::1]:8445", "localhost"):
            secret, _ = running.services.operator_sessions.new_link()
            answer = await Browser.on(running).get(f"/console/enter?secret={secret}", host=host)
            names.append(answer.headers["set-cookie"].partition("=")[0])
        assert names == ["mimids-console-8445", "mimids-console-9445", "mimids-console-8445", "mimids-console"]


async def test_a_session_is_ended_by_its_operator(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, _, browser):
        fields = await browser.form("/console/leave")
        assert code(await browser.post("/console/leave", {TOKEN: "made-up"})) == "old-form"
        left = await browser.post("/console/leave", fields)
        assert left.status == 303
        assert "Max-Age=0" in left.headers["set-cookie"]
        page = (await browser.get(ADD)).body
        assert any("There is no session" in text for text in texts(page))


# --- forms ------------------------------------------------------------------------------------------------------


async def test_each_command_has_a_form_with_a_field_for_each_argument(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, _, browser):
        listed = links((await browser.get("/console/commands")).body)
        for command in COMMANDS:
            page = parsed((await browser.get(listed[command.name])).body)
            names = {each.attrib["name"] for form in page.iter("form") for each in form.iter() if "name" in each.attrib}
            assert {argument.name for argument in command.arguments} <= names, command.name
            labels = {label.attrib["for"] for label in page.iter("label") if "for" in label.attrib}
            assert {each.name for each in command.arguments if each.kind is not ArgumentKind.FLAG} <= labels


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_filled_form_stands_for_the_arguments_that_were_written(command: Command) -> None:
    written, meant = {}, {}
    for argument in command.arguments:
        value: object = argument.sample
        if argument.kind is ArgumentKind.NAMES:
            value = [argument.sample, "carol"]
        written[argument.name] = {
            ArgumentKind.NAMES: f"{argument.sample}\r\ncarol\r\n",
            ArgumentKind.FLAG: "yes",
            ArgumentKind.TIME: "2027-01-31",
            ArgumentKind.DOCUMENT: json.dumps(argument.sample),
        }.get(argument.kind, f" {argument.sample} ")
        meant[argument.name] = 1_801_353_600_000 if argument.kind is ArgumentKind.TIME else value
    clock = stopped_clock()
    assert forms.arguments(command, written, clock.now()) == meant
    fields = {each.name: each.value for each in forms.fields(command, written)}
    assert fields == written


async def test_a_refused_act_shows_why_and_its_form_as_it_was_filled(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        refused = await browser.act(ADD, name="alice")
        assert refused.status == 409
        assert "Name already in use" in texts(refused.body)
        assert running.log.lines[-1]["code"] == "name-taken"
        page = parsed(refused.body)
        field = next(each for each in page.iter("input") if each.attrib["name"] == "name")
        assert field.attrib["value"] == "alice"
        token = next(each.attrib["value"] for each in page.iter("input") if each.attrib["name"] == TOKEN)
        assert (await browser.post(ADD, {TOKEN: token, "name": "bob"})).status == 200
        assert await users(running) == ["alice", "bob"]


@pytest.mark.parametrize(
    ("path", "filled", "says"),
    [
        (ADD, {}, "Name is missing"),
        ("token/revoke", {"user": "alice", "id": "seven"}, "Id: expected whole number"),
        ("token/revoke", {"user": "alice", "id": "9" * 5000}, "Id: the number is too large"),
        ("ban/add", {"subject": "b.example", "expires_at": "soon"}, "Expires_at: expected 90d, 12h"),
        ("ban/add", {"subject": "b.example", "expires_at": "999999d"}, None),
        ("token/issue", {"user": "alice", "scheme": "odd"}, "Scheme: expected one of"),
        ("user/remove", {"user": "nobody"}, "There is no user"),
        ("user/remove", {"user": "\0"}, "User: expected UTF-8"),
    ],
)
async def test_wrong_fields_are_named(tmp_path: Path, path: str, filled: dict[str, str], says: str | None) -> None:
    async with opened(tmp_path) as (_, _, browser):
        answer = await browser.act(path if path.startswith("/") else f"/console/commands/{path}", **filled)
        if says is None:
            assert answer.status == 200
        else:
            assert answer.status in (400, 404)
            assert any(text.startswith(says) for text in texts(answer.body)), texts(answer.body)


async def test_a_secret_is_shown_once_and_not_recorded(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        answer = await browser.act("/console/commands/device/add?user=alice", name="laptop")
        (token,) = (each.text for each in parsed(answer.body).findall(".//section[@id='secrets']//code"))
        assert token
        assert answer.headers["cache-control"] == "no-store"
        assert token not in running.dump()
        assert token not in (await browser.get("/console/users/alice")).body.decode()
        assert token not in str(running.log.lines)


async def test_a_link_for_another_browser_is_made_in_a_session_and_recorded(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        answer = await browser.act("/console/commands/console")
        (link,) = (each.text for each in parsed(answer.body).findall(".//section[@id='secrets']//code"))
        assert link
        other = Browser.on(running)
        assert (await other.enter(link.partition("secret=")[2])).status == 303
        assert [command for _, command in await audited(running)] == ["console"]
        assert link not in running.dump()


async def test_many_users_are_added_with_one_form(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        assert (await browser.act(ADD, name="bob", users="carol\r\ndave")).status == 200
        assert await users(running) == ["alice", "bob", "carol", "dave"]


async def test_a_reading_command_answers_without_a_session(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        browser = Browser.on(running)
        assert "mimi://a.example/u/alice" in texts((await browser.get("/console/commands/user/list")).body)
        path = "/console/commands/device/list"
        assert "phone" not in texts((await browser.get(path)).body)
        assert "phone" in texts((await browser.get(f"{path}?run=yes&user=alice")).body)
        assert "There is no user with this name" in texts((await browser.get(f"{path}?run=yes&user=x")).body)


# --- offers -----------------------------------------------------------------------------------------------------


async def test_pages_offer_the_commands_for_what_they_show_and_forms_lead_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (running, _, browser):
        await browser.act("/console/commands/token/issue", user="alice", scheme="shared")
        page = await browser.get("/console/users/alice")
        offered = links(page.body)
        assert {"remove", "revoke", "user remove", "device add", "token issue"} <= offered.keys()
        assert not {"device remove", "token revoke", "user add"} & offered.keys()
        form = await browser.form(offered["remove"])
        assert (form["user"], form["name"], form["back"]) == ("alice", "phone", "/console/users/alice")
        done = await browser.act(offered["remove"])
        assert links(done.body)["Back"] == "/console/users/alice"
        assert await rows(running, "SELECT * FROM devices") == []
        assert {"user add"} <= links((await browser.get("/console/users")).body).keys()


async def test_rows_of_bans_and_mutes_can_be_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, _, browser):
        await browser.act("/console/commands/ban/add", subject="mimi://b.example/u/bob")
        await browser.act("/console/commands/limit/mute", user="alice", group="mimi://a.example/g/1")
        offered = links((await browser.get("/console/policy")).body)
        for verb in ("remove", "unmute"):
            assert (await browser.act(offered[verb])).status == 200
        assert {"no bans", "no mutes"} <= set(texts((await browser.get("/console/policy")).body))


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example/console", "/metrics", "javascript:alert(1)"])
async def test_a_form_leads_back_to_the_console_only(tmp_path: Path, back: str) -> None:
    async with opened(tmp_path) as (_, _, browser):
        page = (await browser.get(f"{ADD}?back={back}")).body
        assert "Cancel" not in links(page)
        assert "evil" not in page.decode()
