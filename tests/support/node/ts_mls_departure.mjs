// Play a group of two ts-mls members from which a provider removes one device; all octets are in hex.
//
// node ts_mls_departure.mjs: reads one line of JSON, `external_senders` (extension_data). Alice creates a group with it
// and adds bob and carol; this prints the creation and the commit as a line of JSON. Then reads `remove`, an MLSMessage:
// alice and bob receive it, bob commits what is pending and alice follows. Prints the commit and what alice sees then.
import { createInterface } from "node:readline";

import {
    createCommit, createGroup, createGroupInfoWithExternalPubAndRatchetTree, decodeMlsMessage, defaultCapabilities,
    emptyPskIndex, encodeMlsMessage, generateKeyPackage, getCiphersuiteFromName, getCiphersuiteImpl, joinGroup,
    mlsExporter, processPublicMessage,
} from "ts-mls";

const suite = await getCiphersuiteImpl(getCiphersuiteFromName("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519"));
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const read = async () => JSON.parse((await lines.next()).value);
const print = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const utf8 = new TextEncoder();
const hex = (octets) => Buffer.from(octets).toString("hex");
const octets = (text) => new Uint8Array(Buffer.from(text, "hex"));
const now = BigInt(Math.floor(Date.now() / 1000));
const lifetime = { notBefore: now - 3600n, notAfter: now + 86400n };
const states = {};

const client = (identity) => generateKeyPackage(
    { credentialType: "basic", identity: utf8.encode(identity) }, defaultCapabilities(), lifetime, [], suite,
);

// Describe the epoch of a member.
async function epoch(name) {
    const groupInfo = await createGroupInfoWithExternalPubAndRatchetTree(states[name], [], suite);
    const secret = states[name].keySchedule.exporterSecret;
    return {
        key: hex(await mlsExporter(secret, "mimids partition key", new Uint8Array(), 16, suite)),
        group_info: hex(encodeMlsMessage({ version: "mls10", wireformat: "mls_group_info", groupInfo })),
        tree_hash: hex(states[name].groupContext.treeHash),
        members: states[name].ratchetTree
            .filter((node) => node?.nodeType === "leaf")
            .map((node) => new TextDecoder().decode(node.leaf.credential.identity)),
    };
}

async function receive(name, publicMessage) {
    states[name] = (await processPublicMessage(states[name], publicMessage, emptyPskIndex, suite)).newState;
}

async function commit(name, extraProposals = []) {
    const made = await createCommit(
        { state: states[name], cipherSuite: suite },
        { wireAsPublicMessage: true, ratchetTreeExtension: true, extraProposals },
    );
    states[name] = made.newState;
    return made;
}

const alice = await client("mimi://a.example/u/alice/d/phone");
const bob = await client("mimi://a.example/u/bob/d/phone");
const carol = await client("mimi://a.example/u/carol/d/phone");
const groupId = utf8.encode("a group that lists a provider");
const senders = { extensionType: "external_senders", extensionData: octets((await read()).external_senders) };
states.alice = await createGroup(groupId, alice.publicPackage, alice.privatePackage, [senders], suite);
const created = await epoch("alice");
const adds = [bob, carol].map(({ publicPackage }) => ({ proposalType: "add", add: { keyPackage: publicPackage } }));
const added = await commit("alice", adds);
states.bob = await joinGroup(
    added.welcome, bob.publicPackage, bob.privatePackage, emptyPskIndex, suite, states.alice.ratchetTree,
);
print({
    group_id: hex(groupId), created, commit: hex(encodeMlsMessage(added.commit)), after: await epoch("bob"),
});

const [{ publicMessage: remove }] = decodeMlsMessage(octets((await read()).remove), 0);
for (const name of ["alice", "bob"]) await receive(name, remove);
const removed = await commit("bob");
await receive("alice", removed.commit.publicMessage);
print({ commit: hex(encodeMlsMessage(removed.commit)), after: await epoch("alice") });
process.exit(0);
