// Add three ts-mls clients to a group at once, and let them join by the Welcomes that are read; all octets are in hex.
//
// node ts_mls_welcome.mjs: prints the Welcome, the reference of each newcomer's KeyPackage and the epoch's authenticator
// as a line of JSON. Then each line has `newcomer`, a number, and `welcome`, an MLSMessage: prints the authenticator of
// the epoch that the newcomer has joined, or `refused`.
import { createInterface } from "node:readline";

import {
    createCommit, createGroup, decodeMlsMessage, defaultCapabilities, emptyPskIndex, encodeMlsMessage,
    generateKeyPackage, getCiphersuiteFromName, getCiphersuiteImpl, joinGroup,
} from "ts-mls";

const suite = await getCiphersuiteImpl(getCiphersuiteFromName("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519"));
const print = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const hex = (octets) => Buffer.from(octets).toString("hex");
const octets = (text) => new Uint8Array(Buffer.from(text, "hex"));
const utf8 = new TextEncoder();
const now = BigInt(Math.floor(Date.now() / 1000));
const lifetime = { notBefore: now - 3600n, notAfter: now + 86400n };
const client = (identity) => generateKeyPackage(
    { credentialType: "basic", identity: utf8.encode(identity) }, defaultCapabilities(), lifetime, [], suite,
);
const authenticator = (state) => hex(state.keySchedule.epochAuthenticator);

const alice = await client("alice");
const newcomers = await Promise.all(["bob", "bob's tablet", "carol"].map(client));
const created = await createGroup(utf8.encode("a group"), alice.publicPackage, alice.privatePackage, [], suite);
const extraProposals = newcomers.map(({ publicPackage }) => ({ proposalType: "add", add: { keyPackage: publicPackage } }));
const { welcome, newState } = await createCommit(
    { state: created, cipherSuite: suite }, { ratchetTreeExtension: true, extraProposals },
);
print({
    welcome: hex(encodeMlsMessage({ version: "mls10", wireformat: "mls_welcome", welcome })),
    references: welcome.secrets.map(({ newMember }) => hex(newMember)),
    joined: authenticator(newState),
});

for await (const line of createInterface({ input: process.stdin })) {
    const { newcomer, welcome: given } = JSON.parse(line);
    const { publicPackage, privatePackage } = newcomers[newcomer];
    try {
        const [message] = decodeMlsMessage(octets(given), 0);
        const state = await joinGroup(message.welcome, publicPackage, privatePackage, emptyPskIndex, suite);
        print({ joined: authenticator(state) });
    } catch (error) {
        print({ refused: String(error) });
    }
}
