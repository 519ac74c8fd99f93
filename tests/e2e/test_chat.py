"""The chat of examples/ in Chromium: three people at three providers, each in a browser of their own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from examples.chat import serve
from mimids.testing import Federation, Session
from tests.support.barriers import AXE, AXE_RUN, wait
from tests.support.chromium import BROWSER, Page, chromium
from tests.support.played import TS_MLS, note

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="wants Chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="wants npm"),
]

KEPT: Final = "MIMIDS_SCREENSHOTS"
SUITE: Final = 1  # of the page
CLICKS: Final = {"#renew": "update", "#leave": "leave"}
OFFLINE_MESSAGES: Final = 200
BREAK_NEXT_COMMIT: Final = """{
    const epoch = [...chat.epochs.values()][0], commit = epoch.commit;
    epoch.commit = async () => {
        const made = await commit.call(epoch);
        made.message[made.message.length - 1] ^= 1;
        return made;
    };
}"""


@attrs.frozen
class Person:
    name: str
    page: Page
    link: str

    def open(self) -> None:
        self.page.open(self.link)
        self.wait_connected()

    def reload(self) -> None:
        self.page.reload()
        self.wait_connected()

    def wait_connected(self) -> None:
        self.wait("document.querySelector('#status').textContent === 'Connected'")

    def wait(self, expression: str) -> None:
        try:
            wait(lambda: self.page.evaluate(expression), 40)
        except AssertionError:
            raise AssertionError((self.name, expression, self.page.text())) from None

    def submit(self, form: str, field: str, text: str) -> None:
        self.page.evaluate(
            f"document.querySelector({field!r}).value = {text!r}; document.querySelector({form!r}).requestSubmit()"
        )

    def create(self, name: str, *, forking: bool = False) -> None:
        if forking:
            self.click("#new-group [name=forking]")
        note(TS_MLS, SUITE, "create", "private handshakes", "no GroupInfo")
        self.submit("#new-group", "#name", name)
        self.wait(f"document.querySelector('#group-name').textContent === {name!r}")

    def say(self, text: str) -> None:
        note(TS_MLS, SUITE, "messages")
        self.submit("#compose", "#text", text)

    def press(self, label: str) -> None:
        note(TS_MLS, SUITE, label.split()[0].lower())
        selector = f'button[aria-label="{label}"]'
        button = f"document.querySelector({selector!r})"
        self.wait(f"{button} !== null")
        self.page.evaluate(f"{button}.click()")

    def click(self, selector: str) -> None:
        if selector in CLICKS:
            note(TS_MLS, SUITE, CLICKS[selector])
        self.page.evaluate(f"document.querySelector({selector!r}).click()")

    def wait_members(self, *names: str) -> None:
        found = (
            "[...document.querySelectorAll('#people li:not(.outside) b')].map(each => each.textContent).sort().join()"
        )
        self.wait(f"{found} === {','.join(sorted(names))!r}")

    def wait_text(self, text: str) -> None:
        self.wait(f"document.querySelector('#lines').innerText.includes({text!r})")

    def write_in(self, branch: str) -> None:
        self.click(f'#branches [aria-label="{self.title(branch)}"] button')

    def title(self, branch: str) -> str:
        return "Your branch" if branch == self.name else f"Branch of {branch}"

    @property
    def branches(self) -> dict[str, str]:
        """Whose commit began each branch that is shown, and the members of it."""
        found: list[list[Any]] = self.page.evaluate(
            "[...chat.groups.values()].filter(each => each.fork).map(each => [each.fork.by, each.members])"
        )
        return {name_of(by): ",".join(sorted(map(name_of, members))) for by, members in found}

    @property
    def said_in(self) -> dict[str, set[str]]:
        """What each column of the page shows below the fork."""
        found: dict[str, list[str]] = self.page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#branches section')].map(each => "
            "[each.ariaLabel, [...each.querySelectorAll('li:not(.event):not(.waiting) p')].map(p => p.textContent)]))"
        )
        return {name: set(found.get(self.title(name), ["not shown"])) for name in ("alice", "bob")}

    @property
    def texts(self) -> list[str]:
        found: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('#lines li:not(.event):not(.waiting) p')].map(each => each.textContent)"
        )
        return found

    @property
    def readers(self) -> str:
        """Who can read new messages, as the page says it."""
        return str(self.page.evaluate("document.querySelector('#sees dt').textContent"))

    @property
    def of_readers(self) -> str:
        """The verb of what the page says about them."""
        return str(self.page.evaluate("document.querySelector('#sees dd').textContent.split(' ')[0]"))

    @property
    def epoch(self) -> int:
        found: int = self.page.evaluate("[...chat.groups.values()][0].keys.at(-1).epoch")
        return found

    def offline(self, offline: bool) -> None:
        """Cut the page off, and its connections too: Chromium keeps open WebSockets when it is told to be offline."""
        self.page.call(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        if offline:
            self.page.evaluate("chat.stream.socket?.close()")


def name_of(user_id: str) -> str:
    return user_id.rpartition("/")[2]


@contextmanager
def three_people(session: Session) -> Iterator[tuple[Federation, list[Person]]]:
    serve.build()
    with serve.chat(session) as (federation, links), ExitStack() as stack:
        people = [Person(name, stack.enter_context(chromium()), link) for name, link in links.items()]
        for person in people:
            person.page.screen(1280)
            person.open()
        yield federation, people
        hub = federation[serve.PEOPLE["alice"]]
        for suite, linear in hub.read("SELECT cipher_suite, linear FROM groups"):
            assert suite == SUITE
            note(TS_MLS, suite, "linear group" if linear else "forking group")


def gather(people: list[Person], name: str = "Allotments", *, forking: bool = False) -> None:
    """Let the first person make a group and add the others."""
    first, *others = people
    first.create(name, forking=forking)
    for other in others:
        first.press(f"Add {other.name}")
        first.wait_members(*[each.name for each in people[: people.index(other) + 1]])
    for other in others:
        other.wait(f"document.querySelector('#group-name').textContent === {name!r}")


def check_same(people: list[Person], texts: set[str]) -> None:
    """Wait until everyone shows these messages, and check that they have the same order and come once."""
    for person in people:
        for _ in range(1200):
            if set(person.texts) >= texts:
                break
            time.sleep(0.1)
    shown = [person.texts for person in people]
    assert all(sorted(each) == sorted(texts) for each in shown), [set(texts) ^ set(each) for each in shown]
    assert all(each == shown[0] for each in shown)


def check_looks(person: Person, picture_name: str, folder: Path) -> None:
    """Check width and accessibility, light and dark, and keep pictures where they are wanted."""
    kept = os.environ.get(KEPT)
    violations: dict[str, Any] = {}
    for width in (400, 1280):
        for dark in (False, True):
            person.page.screen(width, dark=dark)
            name = f"{picture_name}-{width}-{'dark' if dark else 'light'}"
            assert person.page.evaluate("document.documentElement.scrollWidth") <= width
            picture = folder / f"{name}.png"
            person.page.picture(picture)
            if kept:
                Path(kept, picture.name).write_bytes(picture.read_bytes())
            if AXE.is_file():
                person.page.evaluate(f"{AXE.read_text(encoding='utf-8')}; null")
                results = person.page.evaluate(AXE_RUN)
                assert results["passes"] > 5
                if results["violations"]:
                    violations[name] = results["violations"]
    assert violations == {}


# Longer than 40 lines: one story, in which each step needs the one before.
def test_three_people_talk_change_the_group_and_lose_connections(mimids_session: Session, tmp_path: Path) -> None:
    with three_people(mimids_session) as (federation, people):
        alice, bob, carol = people
        gather(people)
        said = set()
        for number, person in enumerate(people * 2):
            person.say(f"{person.name} says {number}")
            said.add(f"{person.name} says {number}")
        check_same(people, said)

        note(TS_MLS, SUITE, "racing commits")
        for person in people:
            person.click("#renew")
        for person in people:
            person.wait(f"[...chat.groups.values()][0].keys.at(-1).epoch === {2 + len(people)}")

        bob.reload()
        check_same(people, said)
        bob.say("back again")
        said.add("back again")
        check_same(people, said)

        carol.offline(True)
        carol.wait("document.querySelector('#status').textContent.startsWith('Offline')")
        for number in range(OFFLINE_MESSAGES):
            (alice, bob)[number % 2].say(f"while Carol is away {number}")
            said.add(f"while Carol is away {number}")
        check_same([alice, bob], said)
        carol.offline(False)
        check_same(people, said)

        hub = federation[serve.PEOPLE["alice"]]
        hub.kill()
        bob.say("is anybody there?")
        hub.start()
        alice.say("now I am")
        said |= {"is anybody there?", "now I am"}
        check_same(people, said)

        carol.click("#leave")
        for person in (alice, bob):
            person.wait_members("alice", "bob")
        carol.wait_text("You left")
        alice.press("Remove bob")
        alice.wait_members("alice")
        bob.wait_text("removed bob")
        alice.say("only for me")
        check_same([alice], said | {"only for me"})
        assert "only for me" not in [*bob.texts, *carol.texts]
        assert (alice.readers, bob.readers, carol.readers) == ("You", "alice", "alice and bob")
        assert [person.of_readers for person in (alice, bob, carol)] == ["can", "was", "were"]
        check_looks(bob, "chat-removed", tmp_path)
        alice.click("#leave")
        alice.wait("document.querySelector('#ended').textContent.startsWith('You left, and nobody is')")
        assert alice.readers == "Nobody"
        wait(lambda: hub.read("SELECT count(*) FROM participations WHERE left_at IS NULL") == [(0,)])

        for provider in federation:
            files = b"".join(provider.files().values())
            assert b"while Carol" not in files
            assert b"Allotments" not in files


# Longer than 40 lines: one story, in which each step needs the one before.
def test_two_commits_of_one_epoch_are_shown_as_two_branches_side_by_side(
    mimids_session: Session, tmp_path: Path
) -> None:
    with three_people(mimids_session) as (_, people):
        alice, bob, carol = people
        gather(people, forking=True)
        alice.say("Who waters the tomatoes this week?")
        check_same(people, {"Who waters the tomatoes this week?"})
        for person in people:
            person.wait("![...chat.groups.values()][0].linear")

        bob.offline(True)  # so that both commit in one epoch: Alice takes Carol out, Bob makes new keys
        bob.wait("document.querySelector('#status').textContent.startsWith('Offline')")
        bob.click("#renew")
        alice.press("Remove carol")
        alice.wait_members("alice", "bob")
        bob.offline(False)
        branches = {"alice": "alice,bob", "bob": "alice,bob,carol"}
        for person in people:
            wait(lambda person=person: person.branches == branches, 40)  # type: ignore[misc]
        carol.wait("document.querySelector('#branches').innerText.includes('You are not in this branch.')")

        said = "While Carol cannot read it: a present for her?"
        alice.say(said)
        bob.write_in("alice")
        bob.say("A watering can.")
        carol.write_in("bob")
        carol.say("I can do Tuesday and Thursday.")
        alice.write_in("bob")
        alice.say("Thanks!")
        shown = {
            "alice": {said, "A watering can."},
            "bob": {"I can do Tuesday and Thursday.", "Thanks!"},
        }
        for person in (alice, bob):
            wait(lambda person=person: person.said_in == shown, 40)  # type: ignore[misc]
        wait(lambda: carol.said_in == {"alice": set(), "bob": shown["bob"]}, 40)
        bob.reload()
        assert (bob.branches, bob.said_in) == (branches, shown)
        bob.say("Is this still Bob's branch?")  # the page is back at its own
        shown["bob"].add("Is this still Bob's branch?")
        wait(lambda: alice.said_in == shown, 40)
        check_looks(alice, "chat-fork", tmp_path)

        alice.write_in("alice")
        bob.write_in("alice")
        alice.offline(True)
        bob.click("#renew")
        column = bob.title("alice")
        bob.wait(f"document.querySelector('[aria-label=\"{column}\"]').innerText.includes('You made new keys')")
        alice.page.evaluate(BREAK_NEXT_COMMIT)
        alice.click("#renew")
        alice.offline(False)
        bob.wait("document.querySelector('#branches').innerText.includes('This page cannot read this branch.')")
        alice.wait("document.querySelectorAll('#branches section').length === 3")


def test_the_page_is_quick_keeps_its_policy_and_everybody_can_use_it(mimids_session: Session, tmp_path: Path) -> None:
    with three_people(mimids_session) as (_, people):
        alice, bob, _ = people
        gather(people)
        for person, text in zip(
            [alice, bob, alice, people[2]],
            ["Who waters the tomatoes this week?", "I can do Tuesday and Thursday.", "Thanks! I take the weekend.",
             "Then I bring the cake."],
            strict=True,
        ):  # fmt: skip
            person.say(text)
            for each in people:
                each.wait_text(text)
        check_looks(alice, "chat", tmp_path)
        assert alice.page.events("Log.entryAdded") == []
        alice.reload()
        ready = alice.page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert ready < 1000
