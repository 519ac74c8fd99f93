"""Chat in a terminal with one other person at another provider: MLS by mls-rs, delivery by mimids.

    python examples/terminal_chat/chat.py ME.json FRIEND.json [--begin]

ME.json names this device: `url`, `token`, `ca`, `user_id`, `provider`. FRIEND.json is the friend's contact card, as
`mimids contact` prints it. Whoever is started with --begin makes the group. `make terminal-chat` does all of it.

What you type goes to your friend; /keys makes new keys for both; an empty line or Ctrl-D ends the chat. Keys and
messages are in memory only: see README.md for what that means.
"""

import argparse
import json
import secrets
import sys
from pathlib import Path

import mls_rs_uniffi as mls
import trio

from mimids import client
from mimids.client import requests
from mimids.wire.base64url import base64url
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId

SUITE = CipherSuite(1)
KEY_PACKAGE_HEAD = b"\0\1\0\5"  # mls-rs makes MLSMessages; a provider stores the KeyPackage inside


class Memory(mls.GroupStateStorage):
    """Where mls-rs writes the group. An application has a file or a database here."""

    def __init__(self):
        self.group_id, self.states, self.epochs = None, {}, {}

    def state(self, group_id):
        return self.states.get(group_id)

    def epoch(self, group_id, epoch_id):
        return self.epochs.get((group_id, epoch_id))

    def write(self, group_id, group_state, epoch_inserts, epoch_updates):
        self.group_id = group_id
        self.states[group_id] = group_state
        self.epochs |= {(group_id, each.id): each.data for each in [*epoch_inserts, *epoch_updates]}

    def max_epoch_id(self, group_id):
        return max((epoch for group, epoch in self.epochs if group == group_id), default=None)


class Chat:
    """One person's side: an MLS client, a device at a provider, and where in the group they are."""

    def __init__(self, device, stream, me, friend):
        self.device, self.stream, self.me, self.friend = device, stream, me, friend
        keys = mls.generate_signature_keypair(mls.CipherSuite.CURVE25519_AES128)
        self.memory = Memory()
        config = mls.ClientConfig(group_state_storage=self.memory, use_ratchet_tree_extension=True)
        self.client = mls.Client(me["user_id"].encode(), keys, config)
        self.group, self.hub = None, None
        self.next_groups = {}  # after our commits that have not come back, by their octets
        self.counters = {}  # of the next message, by partition key
        self.sent = set()

    async def offer_key_package(self):
        """Upload what others need to add this device to a group."""
        package = self.client.generate_key_package_message().to_bytes()
        await self.device.upload([package.removeprefix(KEY_PACKAGE_HEAD)], replace=True)

    async def begin(self):
        """Create a group at our provider, and add the friend."""
        self.hub = ProviderId(self.me["provider"])
        package = await self.fetch_key_package()
        group_id = GroupId(f"mimi://{self.hub}/g/{base64url(secrets.token_bytes(9))}".encode())
        self.group = self.client.create_group(group_id)
        await self.device.create_group(requests.creation(group_id, SUITE, key_of(self.group)), linear=True)
        await self.commit(lambda: self.group.add_members([mls.Message.from_bytes(KEY_PACKAGE_HEAD + package)]))
        say(f"You are connected. {self.hub} puts your messages in order; it cannot read them.")

    async def fetch_key_package(self):
        """Wait for a KeyPackage of the friend, and fetch it; our provider does not see whose it is (OHTTP)."""
        while True:
            try:
                return await self.device.fetch_key_package(self.friend, SUITE)
            except client.Problem as problem:
                if problem.code != "key-packages-exhausted":
                    raise
                await trio.sleep(0.5)

    def join(self, inbox_welcome):
        """Join the group that a Welcome leads to. A chat with many contacts checks here who invites."""
        joined = self.client.join_group(None, mls.Message.from_bytes(inbox_welcome.welcome.encoded))
        self.hub, self.group = inbox_welcome.hub, joined.group
        self.group.write_to_storage()
        self.stream.acknowledge(inbox_welcome.welcome_id)
        self.enter()
        say(f"You are connected. {self.hub} puts your messages in order; it cannot read them.")

    async def send(self, text):
        message = self.group.encrypt_application_message(text.encode()).to_bytes()
        self.group.write_to_storage()  # before it is sent: a key must not be used twice
        self.sent.add(message)
        await self.stream.send(self.hub, requests.message(message, key_of(self.group)))

    async def commit(self, make):
        """Send a commit; if the friend's came first, apply that and make ours again."""

        async def attempt():
            nonlocal key
            self.group.write_to_storage()
            made, key = make(), key_of(self.group)
            self.group.process_incoming_message(made.commit_message)  # so mls-rs knows the key of the next epoch
            next_group, self.group = self.group, self.client.load_group(self.memory.group_id)
            welcome = made.welcome_message and made.welcome_message.to_bytes()
            homes = [self.friend.provider] if welcome else []
            octets, following = made.commit_message.to_bytes(), key_of(next_group)
            self.sent.add(octets)
            self.next_groups[octets] = next_group
            request = requests.commit(octets, key, following, welcome=welcome, service_providers=homes)
            return client.CommitAttempt(request, self.counters[key])

        async def apply(first, messages):
            self.receive(key, first, messages)

        key = None
        self.enter()  # our own commit comes back too: it is the moment at which the next epoch begins
        await client.commit_with_retry(self.device, self.hub, attempt, apply)

    def enter(self, after=None):
        """Ask for the messages of the epoch."""
        key = key_of(self.group)
        self.stream.present(self.hub, key, self.counters.setdefault(key, 0), after=after)

    def receive(self, key, first, messages):
        """Process messages of a partition that have not come yet. In a linear group an epoch has one commit at most."""
        for counter, message in enumerate(messages, first):
            if counter < self.counters[key]:
                continue
            self.counters[key] = counter + 1
            octets = message.message.encoded
            if octets in self.sent:
                if message.commit is not None:
                    self.group = self.next_groups[octets]
                    self.next_groups.clear()
            else:
                received = self.group.process_incoming_message(mls.Message.from_bytes(octets))
                if received.is_application_message():
                    say(f"{self.friend.user_id.decode().rpartition('/')[2]}: {received.data.decode()}")
            self.group.write_to_storage()
            if message.commit is not None:
                self.enter(after=key)
                say("New keys: what was said so far cannot be read with them.")

    async def listen(self):
        async for event in self.stream:
            if isinstance(event, client.Arrived):
                self.receive(event.partition_key, event.counter, event.messages)
            elif isinstance(event, client.InboxWelcome) and self.group is None:
                self.join(event)

    async def type(self):
        """Send each line that is typed, up to an empty one or the end of the input."""
        while line := (await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)).strip():
            if self.group is None:
                say("Wait: nobody is here yet.")
            elif line == "/keys":
                await self.commit(lambda: self.group.commit())
            else:
                await self.send(line)


def key_of(group):
    """Return the key of the group's epoch at the hub: only members can compute it."""
    return PartitionKey(group.export_secret(requests.EXPORTER_LABEL.encode(), b"", PartitionKey.SIZE))


def say(line):
    print("".join(each for each in line if each.isprintable()), flush=True)


async def main(me, friend, begin):
    say(f"You are {me['user_id']}. Your friend is {friend.user_id.decode()}. /keys makes new keys, Ctrl-D ends.")
    opened = client.open_device(me["url"], me["token"], trust=me["ca"] and Path(me["ca"]))
    async with opened as device, device.stream() as stream, trio.open_nursery() as nursery:
        chat = Chat(device, stream, me, friend)
        await chat.offer_key_package()
        nursery.start_soon(chat.listen)
        if begin:
            await chat.begin()
        await chat.type()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Chat with one other person.")
    parser.add_argument("me", type=Path)
    parser.add_argument("friend", type=Path)
    parser.add_argument("--begin", action="store_true", help="make the group")
    chosen = parser.parse_args()
    trio.run(main, json.loads(chosen.me.read_text()), client.Contact.from_json(chosen.friend.read_text()), chosen.begin)
