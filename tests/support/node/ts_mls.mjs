// Record a group of ts-mls members with a post-quantum suite, as one JSON object; all octets are in hex.
//
// node ts_mls.mjs SUITE: alice creates the group and adds bob, both commit in turn, carol joins from outside, and bob
// commits once more. Whoever receives a commit processes it, so that the members agree on the state.
import {
    createCommit, createGroup, createGroupInfoWithExternalPubAndRatchetTree, defaultCapabilities, emptyPskIndex,
    encodeMlsMessage, generateKeyPackage, getCiphersuiteFromName, getCiphersuiteImpl, joinGroup, joinGroupExternal,
    mlsExporter, processPublicMessage,
} from "ts-mls";

const name = process.argv[2];
const suite = await getCiphersuiteImpl(getCiphersuiteFromName(name));
const utf8 = new TextEncoder();
const hex = (octets) => Buffer.from(octets).toString("hex");
const now = BigInt(Math.floor(Date.now() / 1000));
const lifetime = { notBefore: now - 3600n, notAfter: now + 86400n };
const message = (wireformat, field, value) => hex(encodeMlsMessage({ version: "mls10", wireformat, [field]: value }));

async function client(user) {
    const credential = { credentialType: "basic", identity: utf8.encode(user) };
    const capabilities = { ...defaultCapabilities(), ciphersuites: [name] };
    return generateKeyPackage(credential, capabilities, lifetime, [], suite);
}

async function groupInfo(state) {
    const info = await createGroupInfoWithExternalPubAndRatchetTree(state, [], suite);
    return { info, octets: message("mls_group_info", "groupInfo", info) };
}

async function key(state) {
    return hex(await mlsExporter(state.keySchedule.exporterSecret, "mimids partition key", new Uint8Array(), 16, suite));
}

const alice = await client("mimi://a.example/u/alice");
const bob = await client("mimi://b.example/u/bob");
const carol = await client("mimi://b.example/u/carol");
const groupId = utf8.encode("a group of ts-mls");
const states = { alice: await createGroup(groupId, alice.publicPackage, alice.privatePackage, [], suite) };
const recorded = {
    suite: suite.name,
    group_id: hex(groupId),
    bob: message("mls_key_package", "keyPackage", bob.publicPackage),
    key: await key(states.alice),
    group_info: (await groupInfo(states.alice)).octets,
    commits: [],
};

async function follow(sender, publicMessage) {
    for (const member of Object.keys(states)) {
        if (member !== sender) {
            const processed = await processPublicMessage(states[member], publicMessage, emptyPskIndex, suite);
            states[member] = processed.newState;
        }
    }
    const keys = new Set(await Promise.all(Object.values(states).map(key)));
    if (keys.size !== 1) throw new Error("the members disagree");
}

async function commit(by, extraProposals = []) {
    const before = await key(states[by]);
    const made = await createCommit(
        { state: states[by], cipherSuite: suite },
        { wireAsPublicMessage: true, ratchetTreeExtension: true, extraProposals },
    );
    states[by] = made.newState;
    await follow(by, made.commit.publicMessage);
    recorded.commits.push({
        by,
        key: before,
        message: hex(encodeMlsMessage(made.commit)),
        next: await key(states[by]),
        group_info: (await groupInfo(states[by])).octets,
        welcome: made.welcome ? message("mls_welcome", "welcome", made.welcome) : null,
    });
    return made.welcome;
}

const welcome = await commit("alice", [{ proposalType: "add", add: { keyPackage: bob.publicPackage } }]);
states.bob = await joinGroup(welcome, bob.publicPackage, bob.privatePackage, emptyPskIndex, suite);
for (let number = 0; number < 6; number++) await commit(number % 2 ? "alice" : "bob");

const before = await key(states.bob);
const joined = await joinGroupExternal(
    (await groupInfo(states.bob)).info, carol.publicPackage, carol.privatePackage, false, suite,
);
await follow("carol", joined.publicMessage);
states.carol = joined.newState;
recorded.commits.push({
    by: "carol",
    key: before,
    message: message("mls_public_message", "publicMessage", joined.publicMessage),
    next: await key(states.carol),
    group_info: (await groupInfo(states.carol)).octets,
    welcome: null,
});
await commit("bob");
recorded.tree_hash = hex(states.carol.groupContext.treeHash);
process.stdout.write(JSON.stringify(recorded) + "\n");
