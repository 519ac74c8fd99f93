"""A group of clients with real MLS libraries, whose messages go through live providers.

The file is long because one class has everything that a member can do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from mimids.client import Contact, Device, InboxWelcome, requests
from mimids.mls.code_points import SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.proposals import Add, Proposal
from mimids.mls.suites import suite_of
from mimids.mls.welcome import Welcome
from mimids.testing import Federation, Session, open_federation
from mimids.wire.declare import decode, encode
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import Message, SendRequest, SendResponse
from tests.support.played import note
from tests.support.stacks import LIBRARIES, StackMember, stack_members
from tests.support.stage import HUB, NAMES, eventually

PEOPLE: Final = {"alice": 0, "bob": 1, "carol": 2, "dave": 1, "erin": 2, "frank": 0}  # the provider of each
PSK_ID: Final = b"a shared secret"
PSK: Final = bytes(range(32))
COMPONENT: Final = 0x8001  # for private use, so the server does not know what an update of it does
_KEY_PACKAGE_HEAD: Final = b"\0\1\0\5"  # version and wire format of an MLSMessage that holds a KeyPackage
_KEY_PACKAGES: Final = 8  # uploaded by each client

Change = dict[str, object]


@attrs.define(eq=False)
class Person:
    """A user with one device and one MLS client, and how far it has received."""

    name: str
    provider: ProviderId
    device: Device
    mls: StackMember
    contact: Contact
    key: PartitionKey | None = None  # of its epoch; None unless it is a member
    counter: int = 0  # of the next message in its epoch
    path: list[PartitionKey] = attrs.field(factory=list)  # the epochs that it was in
    sent: set[bytes] = attrs.field(factory=set)
    heard: list[str] = attrs.field(factory=list)

    def enter(self, state: Mapping[str, Any]) -> None:
        """Begin an epoch; `state` is what its MLS client says."""
        self.key = PartitionKey.from_hex(state["partition_key"])
        self.counter = 0
        self.path.append(self.key)


@attrs.define(eq=False)
class LiveGroup:
    """The group, and what the hub has sequenced in it. Members follow the first commit of each epoch."""

    federation: Federation
    suite: CipherSuite
    tree: bool
    people: dict[str, Person]
    group_id: GroupId
    log: dict[PartitionKey, list[bytes]] = attrs.field(factory=dict)
    tip: PartitionKey | None = None
    said: dict[bytes, tuple[str, str]] = attrs.field(factory=dict)  # by message: sender and text
    refs: dict[bytes, Person] = attrs.field(factory=dict)  # whose KeyPackage it is

    @property
    def members(self) -> list[Person]:
        return [person for person in self.people.values() if person.key is not None]

    @property
    def outside(self) -> list[Person]:
        return [person for person in self.people.values() if person.key is None]

    def leaf(self, of: Person) -> int:
        """Return the leaf index of a member."""
        state = self.members[0].mls.ask("state", group_id=self.group_id)
        found: int = next(each["leaf"] for each in state["members"] if each["identity"] == of.mls.identity)
        return found

    # --- what members do ------------------------------------------------------------------------------------------

    async def create(self, by: Person, *, linear: bool = False, listing: Iterable[Person] = ()) -> None:
        """Create the group; its external_senders lists the keys of the providers of `listing`."""
        keys = [
            next(key for key in await each.device.provider_keys() if self.suite in key.cipher_suites)
            for each in listing
        ]
        senders = [{"signature_key": each.signature_key, "identity": each.identity.decode()} for each in keys]
        state = by.mls.ask("create", group_id=self.group_id, external_senders=senders)
        found = by.mls.ask("group_info", group_id=self.group_id, tree=self.tree)
        tree = None if self.tree else bytes.fromhex(found["ratchet_tree"])
        by.enter(state)
        assert by.key is not None
        info = bytes.fromhex(found["group_info"])
        for person in self.people.values():
            note(LIBRARIES[person.mls.stack], self.suite, "linear group" if linear else "forking group")
        await by.device.create_group(
            requests.creation(self.group_id, self.suite, by.key, group_info=info, ratchet_tree=tree), linear=linear
        )
        self.tip = by.key

    async def say(self, by: Person, text: str) -> None:
        message = by.mls.octets("encrypt", "message", group_id=self.group_id, data=text.encode())
        self.said[message] = (by.name, text)
        await self._send(by, message)

    async def propose(self, by: Person, change: Change) -> None:
        await self._send(by, by.mls.octets("propose", "message", group_id=self.group_id, change=change))

    async def commit(self, by: Person, changes: Iterable[Change] = (), *, adding: Iterable[Person] = ()) -> None:
        """Commit these changes and all pending proposals; those who are added join by the Welcome."""
        await self.send_commit(by, self.make_commit(by, changes))
        await self.catch_up()
        for joiner in adding:
            await self.join(joiner)

    def make_commit(self, by: Person, changes: Iterable[Change] = ()) -> dict[str, Any]:
        return by.mls.ask("commit", group_id=self.group_id, changes=list(changes))

    def commit_request(self, by: Person, made: Mapping[str, Any]) -> SendRequest:
        """Return the request that sends a commit of a member."""
        assert by.key is not None
        welcome = _maybe(made["welcome"])
        return requests.commit(
            bytes.fromhex(made["message"]),
            by.key,
            PartitionKey.from_hex(made["next"]["partition_key"]),
            group_info=_maybe(made["group_info"]),
            welcome=welcome,
            service_providers=[] if welcome is None else self._homes(welcome),
        )

    async def send_commit(self, by: Person, made: Mapping[str, Any]) -> SendResponse:
        """Send a commit; it counts as the group's next one if no other was sequenced before it."""
        assert by.key is not None
        octets = bytes.fromhex(made["message"])
        following = PartitionKey.from_hex(made["next"]["partition_key"])
        request = self.commit_request(by, made)
        by.sent.add(octets)
        answer = await by.device.send(HUB, request)
        self._sequenced(by.key, octets, answer)
        if not answer.earlier_commits and self.tip == by.key:
            self.tip = following
        return answer

    async def join(self, person: Person) -> None:
        """Join by the Welcome in the inbox; without a ratchet_tree extension, with the tree that the hub has."""

        async def inbox() -> tuple[InboxWelcome, ...]:
            return await person.device.welcomes()

        (received,) = await eventually(inbox)
        tree = None
        if not self.tree:
            bundle = await person.device.group_info(HUB, self.group_id)
            tree = bundle.info.ratchet_tree
        person.enter(person.mls.ask("join", welcome=received.welcome.encoded, ratchet_tree=tree))
        await person.device.acknowledge(received.welcome_id)

    async def join_external(self, person: Person, psk_ids: Iterable[bytes] = ()) -> None:
        """Join by an external commit, or replace the person's own leaf by one."""
        bundle = await person.device.group_info(HUB, self.group_id)
        made = person.mls.ask(
            "join_external",
            group_info=bundle.info.group_info.encoded,
            ratchet_tree=None if self.tree else bundle.info.ratchet_tree,
            psk_ids=[each.hex() for each in psk_ids],
        )
        octets = bytes.fromhex(made["message"])
        following = PartitionKey.from_hex(made["next"]["partition_key"])
        request = requests.external_join(octets, following, group_info=_maybe(made["group_info"]))
        answer = await person.device.join(HUB, request)
        assert self.tip is not None
        assert not answer.earlier_commits
        self._sequenced(self.tip, octets, answer)
        self.tip = following
        person.enter(made["next"])
        await self.catch_up()

    async def propose_join(self, person: Person) -> None:
        """Ask to be added by an external proposal."""
        bundle = await person.device.group_info(HUB, self.group_id)
        octets = person.mls.octets(
            "propose_join",
            "message",
            group_info=bundle.info.group_info.encoded,
            ratchet_tree=None if self.tree else bundle.info.ratchet_tree,
        )
        await self._hand_out(person, octets)
        answer = await person.device.propose(HUB, requests.external_proposal(octets))
        assert self.tip is not None
        self._sequenced(self.tip, octets, answer)
        await self.catch_up()

    async def _hand_out(self, person: Person, proposal: bytes) -> None:
        """Let the person's provider know the KeyPackage in the proposal, or it would refuse a Welcome for it.

        The library made it for the proposal alone. A provider takes Welcomes for KeyPackages that it has handed out.
        """
        proposed = decode(MLSMessage, proposal).message
        assert isinstance(proposed, PublicMessage)
        assert isinstance(proposed.content.content, Proposal)
        added = proposed.content.content.body
        suite = suite_of(self.suite)
        assert isinstance(added, Add)
        assert suite is not None
        self.refs[added.key_package.ref(suite)] = person
        octets = encode(added.key_package)
        await person.device.drop_stock()
        await upload(person, [octets])
        assert await person.device.fetch_key_package(person.contact, self.suite) == octets
        await self.stock_up(person)

    async def stock_up(self, person: Person) -> None:
        """Upload KeyPackages, the last one as last resort."""
        packages = []
        for number in range(_KEY_PACKAGES):
            made = person.mls.ask("key_package", last_resort=number == _KEY_PACKAGES - 1)
            self.refs[bytes.fromhex(made["reference"])] = person
            packages.append(bytes.fromhex(made["key_package"])[len(_KEY_PACKAGE_HEAD) :])
        await upload(person, packages)

    async def fetch(self, by: Person, whose: Person) -> Change:
        """Fetch a KeyPackage through the relay; return the change that adds its owner."""
        package = await by.device.fetch_key_package(whose.contact, self.suite)
        return {"type": "add", "key_package": _KEY_PACKAGE_HEAD + package}

    async def lose(self, person: Person) -> None:
        """Remove the device of a person from its account; wait until its provider has proposed to remove its leaf."""
        self.federation[person.provider].command("device remove", user=person.name, name="phone")
        person.key = None
        await self.wait_for_remove()

    async def wait_for_remove(self) -> None:
        """Wait until a message from outside has come at the tip, and have all members process it."""
        for person in self.members:
            note(LIBRARIES[person.mls.stack], self.suite, "Remove by a provider")
        assert self.tip is not None
        log = self.log.setdefault(self.tip, [])

        async def arrived() -> tuple[Message, ...]:
            assert self.tip is not None
            return await self.members[0].device.receive(HUB, self.tip, len(log))

        (message,) = await eventually(arrived, seconds=30)
        assert isinstance(message.message.message, PublicMessage)
        assert message.message.message.content.sender.sender_type is SenderType.EXTERNAL
        log.append(message.message.encoded)
        await self.catch_up()

    # --- receiving ------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Let all members receive up to the tip, and check that they agree on the state."""
        for person in self.members:

            async def arrived(person: Person = person) -> bool:
                await self._receive(person)
                return person.key is None or (
                    person.key == self.tip and person.counter == len(self.log.get(person.key, ()))
                )

            await eventually(arrived, seconds=30)
        states = {_without_order(person.mls.ask("state", group_id=self.group_id)) for person in self.members}
        assert len(states) == 1

    async def _receive(self, person: Person) -> None:
        """Receive what there is, and follow commits into their epochs."""
        while person.key is not None:
            page = await person.device.receive(HUB, person.key, person.counter)
            if not page:
                return
            for message in page:
                person.counter += 1
                if self._take(person, message):
                    break  # the page is of an epoch that has ended for this person

    def _take(self, person: Person, message: Message) -> bool:
        """Process one message; tell whether it ended the person's epoch."""
        octets = message.message.encoded
        if octets in person.sent:
            if message.commit is None:
                return False
            state = person.mls.ask("merge", group_id=self.group_id) | {"active": True}
        else:
            if message.commit is not None and self._has_pending(person):
                person.mls.ask("discard", group_id=self.group_id)
            state = person.mls.ask("process", group_id=self.group_id, message=octets)
            if state["kind"] == "application":
                person.heard.append(bytes.fromhex(state["data"]).decode())
        if message.commit is None:
            return False
        if not state["active"]:
            person.key = None
            return True
        person.enter(state)
        assert person.key is not None
        assert message.commit.next_partition_key in person.key.masks()
        return True

    def _has_pending(self, person: Person) -> bool:
        """Tell whether a commit of the person's own is pending, which lost against the one that was received."""
        assert person.key is not None
        return any(octets in person.sent for octets in self.log.get(person.key, ()))

    # --- at the end -----------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Check that everyone heard what was said in their epochs, and that the hub knows the members' tree."""
        await self.catch_up()
        for person in self.people.values():
            wanted = [self.said[each] for key in person.path for each in self.log.get(key, ()) if each in self.said]
            assert person.heard == [text for name, text in wanted if name != person.name], person.name
        state = self.members[0].mls.ask("state", group_id=self.group_id)
        info = (await self.members[0].device.group_info(HUB, self.group_id)).info.group_info.message
        assert isinstance(info, GroupInfo)
        assert info.group_context.tree_hash.hex() == state["tree_hash"]
        assert self.tip is not None
        for name in {person.provider for person in self.members}:

            async def has_all(name: str = name) -> bool:
                assert self.tip is not None
                return self.federation[name].stored(self.tip) == self.log.get(self.tip, [])

            await eventually(has_all)

    # --- steps ----------------------------------------------------------------------------------------------------

    async def _send(self, by: Person, octets: bytes) -> None:
        assert by.key is not None
        by.sent.add(octets)
        answer = await by.device.send(HUB, requests.message(octets, by.key))
        self._sequenced(by.key, octets, answer)
        await self.catch_up()

    def _sequenced(self, key: PartitionKey, octets: bytes, answer: SendResponse) -> None:
        messages = self.log.setdefault(key, [])
        assert answer.partition in key.masks()
        assert answer.detached == 0
        while len(messages) <= answer.counter:
            messages.append(b"")
        messages[answer.counter] = octets

    def _homes(self, welcome: bytes) -> list[ProviderId]:
        found = decode(MLSMessage, welcome).message
        assert isinstance(found, Welcome)
        return [self.refs[ref].provider for ref in found.key_package_refs]


def _maybe(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _without_order(state: Mapping[str, Any]) -> str:
    return repr(sorted((name, repr(value)) for name, value in state.items()))


# Longer than 40 lines: it makes each client with everything that the client needs.
@asynccontextmanager
async def live_group(
    program: Path,
    session: Session,
    *,
    stacks: Iterable[str],
    suite: int,
    encrypted: bool = False,
    tree: bool = True,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    people: Mapping[str, int] = PEOPLE,
) -> AsyncIterator[LiveGroup]:
    """Provide clients at three providers, with KeyPackages uploaded, that take the libraries in `stacks` in turn.

    `people` has the number of each one's provider.
    """
    libraries = list(stacks)
    async with open_federation(*NAMES, session=session, config=config) as federation, AsyncExitStack() as stack:
        start: Callable[..., StackMember] = stack.enter_context(stack_members(program))
        group = LiveGroup(federation, CipherSuite(suite), tree, {}, GroupId(b"a live group"))
        for number, (name, place) in enumerate(people.items()):
            provider = federation[NAMES[place]]
            account = provider.add_device(name)
            library = libraries[number % len(libraries)]
            mls = start(
                library,
                f"mimi://{provider.name}/u/{name}",
                suite,
                encrypted=encrypted,
                tree=tree,
                # OpenMLS refuses leaf nodes that have GREASE extensions, as those of mls-rs do.
                grease=library == "openmls" or len(libraries) == 1,
            )
            mls.live = (
                f"{'private' if encrypted else 'public'} handshakes",
                "tree in GroupInfo and Welcome" if tree else "tree apart",
            )
            mls.ask("psk", psk_id=PSK_ID, value=PSK)
            device = await stack.enter_async_context(account.client())
            person = Person(name, ProviderId(provider.name), device, mls, provider.contact(name))
            group.people[name] = person
            await group.stock_up(person)
        yield group


async def upload(person: Person, packages: Sequence[bytes]) -> None:
    """Upload KeyPackages, all of which the provider must take."""
    uploaded = await person.device.upload(packages)
    assert (uploaded.accepted, uploaded.refused) == (len(packages), ())
