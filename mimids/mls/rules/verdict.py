"""What a message can be told to be, and every rule by which it can be refused: one table, printed into the docs.

`Invalid` is for certain, `Unknown` says what was missing; `Valid`, as far as visible, comes with the state it leads to
and stands beside it in `public_group`. A rule is broken only where that is certain without secrets; what a reader
lacks makes it silent, never strict.
"""

from __future__ import annotations

from typing import Final, NoReturn

import attrs


@attrs.frozen
class Rule:
    """One rule: a name to look for, where it stands, and what it demands, in a sentence that may be shown."""

    name: str
    section: str
    text: str


@attrs.frozen
class Invalid:
    """Invalid for certain. `section` is the rule's, or where one rule gathers several, the very one; safe to show."""

    rule: Rule
    section: str
    detail: str

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.rule.name}: {self.detail} ({self.section})"


@attrs.frozen
class Missing:
    """One thing that was not there to judge by: its kind, and which one (hex of a reference, a code point)."""

    kind: str
    which: str = ""

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.kind} {self.which}".rstrip()


@attrs.frozen
class Unknown:
    """Not refused, but the state it leads to (for anything but a commit: its validity) cannot be told."""

    missing: tuple[Missing, ...]


# The kinds of Missing
PROPOSAL: Final = "unseen proposal"
PROPOSAL_TYPE: Final = "effect of proposal type"
COMPONENT: Final = "effect of an update of component"
ENCRYPTED_COMMIT: Final = "content of an encrypted commit"
STATE: Final = "state of the epoch"


class RuleError(Exception):
    """A rule is broken; carries the verdict."""

    def __init__(self, invalid: Invalid) -> None:
        super().__init__(str(invalid))
        self.invalid = invalid


def reject(rule: Rule, detail: str = "", *, section: str = "") -> NoReturn:
    """Raise the `RuleError` of a rule; without a detail, its own sentence."""
    raise RuleError(Invalid(rule, section or rule.section, detail or rule.text))


def reject_covering(why: Invalid) -> NoReturn:
    """Raise for a commit that covers a proposal which was refused: it is refused for the same reason."""
    reject(why.rule, f"the commit covers a proposal that was refused: {why.detail}", section=why.section)


RULES: Final[dict[str, Rule]] = {}


def _rule(name: str, section: str, text: str) -> Rule:
    rule = RULES[name] = Rule(
        name, section if section.startswith(("draft", "semantics")) else f"RFC 9420 section {section}", text
    )
    return rule


_EXT: Final = "draft-ietf-mls-extensions"
_UPDATE: Final = f'{_EXT}, "Updating Application Data in the GroupContext"'
_SELF_REMOVE: Final = f'{_EXT}, "SelfRemove Proposal"'

# Framing
MALFORMED: Final = _rule("malformed", "6", "the message does not parse")
WRONG_GROUP: Final = _rule("wrong-group", "6.1", "the message is for another group")
WRONG_EPOCH: Final = _rule("wrong-epoch", "12.4.2", "the message is of another epoch")
LAST_EPOCH: Final = _rule("last-epoch", "8.1", "the epoch's number cannot grow any more")
REINITIALIZED: Final = _rule("reinitialized", "12.4.2", "nothing is sent to a group after it was reinitialized")
APPLICATION_IN_CLEAR: Final = _rule("application-in-clear", "6", "application messages are PrivateMessages")
SENDER_CONTENT: Final = _rule("sender-content", "6.1", "this kind of sender may not send this kind of content")
BLANK_SENDER: Final = _rule("blank-sender", "6.1", "the sender's leaf is blank or outside the tree")
UNLISTED_SENDER: Final = _rule("unlisted-sender", "12.1.8.1", "the sender is not in external_senders")
SIGNATURE: Final = _rule("signature", "6.1", "the message's signature is wrong in this GroupContext")
CONFIRMATION_TAG_LENGTH: Final = _rule("confirmation-tag-length", "6.1", "the confirmation tag is no MAC of the suite")
MEMBERSHIP_TAG_LENGTH: Final = _rule("membership-tag-length", "6.2", "the membership tag is no MAC of the suite")
SENDER_DATA_LENGTH: Final = _rule("sender-data-length", "6.3.2", "the encrypted sender data are not of their size")
CIPHERTEXT_LENGTH: Final = _rule("ciphertext-length", "6.3.1", "the ciphertext is shorter than an empty message")

# Leaf nodes
LEAF_NODE: Final = _rule("leaf-node", "7.3", "the leaf node is not sound in itself")
LEAF_SOURCE: Final = _rule("leaf-source", "7.3", "the leaf node's source is not the one for this place")
LEAF_SIGNATURE: Final = _rule("leaf-signature", "7.3", "the leaf node's signature is wrong")
LEAF_KEY_KEPT: Final = _rule("leaf-key-kept", "7.3", "the new leaf node has the encryption key of the one it replaces")
CREDENTIAL_SUCCESSOR: Final = _rule("credential-successor", "5.3.1", "the new credential is of another user")
REQUIRED_CAPABILITIES: Final = _rule("required-capabilities", "11.1", "a member lacks a required capability")
EXTENSION_SUPPORT: Final = _rule("extension-support", "13.4", "a member does not support an extension of the group")
CREDENTIAL_SUPPORT: Final = _rule("credential-support", "7.3", "a member does not support a credential type in use")
SUITE_SUPPORT: Final = _rule("suite-support", "11.1", "a member does not list the group's version or cipher suite")
SIGNATURE_KEY_UNIQUE: Final = _rule("signature-key-unique", "7.3", "two members have the same signature key")
ENCRYPTION_KEY_UNIQUE: Final = _rule("encryption-key-unique", "7.3", "two nodes have the same encryption key")
DUPLICATE_EXTENSION: Final = _rule("duplicate-extension", "13.4", "a list has two extensions of one type")

# Single proposals
KEY_PACKAGE: Final = _rule("key-package", "10.1", "the KeyPackage is not sound")
KEY_PACKAGE_GROUP: Final = _rule(
    "key-package-group", "10.1", "the KeyPackage is of another version or suite than the group"
)
REMOVE_BLANK: Final = _rule("remove-blank", "12.1.3", "the leaf to remove is blank or outside the tree")
PSK_NONCE: Final = _rule("psk-nonce", "12.1.4", "the psk_nonce is not of the size of the suite's hash")
PSK_USAGE: Final = _rule("psk-usage", "12.1.4", "a PSK of a reinit or branch is not used in that group's first commit")
REINIT_VERSION: Final = _rule("reinit-version", "12.1.5", "a reinitialization goes back to a lower version")
EXTERNAL_INIT: Final = _rule("external-init", "12.1.6", "an ExternalInit is for external commits only")
KEM_OUTPUT: Final = _rule("kem-output", "8.3", "the KEM output is none of the suite's KEM")
GROUP_EXTENSIONS: Final = _rule("group-extensions", "12.1.7", "an extension of the GroupContext does not parse")
EXTERNAL_PROPOSAL: Final = _rule("external-proposal", "12.1.8", "an external sender may not propose this")
NEW_MEMBER_ADD: Final = _rule("new-member-add", "6.1", "a new member may propose an Add only")
DICTIONARY_KEPT: Final = _rule(
    "dictionary-kept", _UPDATE, "where AppDataUpdate is required, only it changes the dictionary"
)
COMPONENT_UPDATE: Final = _rule("component-update", _UPDATE, "the component refuses its update")
COMPONENT_ABSENT: Final = _rule("component-absent", _UPDATE, "data are removed that the component does not have")
COMPONENT_LIST: Final = _rule(
    "component-list", _UPDATE, "one commit removes a component's data twice or beside an update"
)
SELF_REMOVE_SENDER: Final = _rule("self-remove-sender", _SELF_REMOVE, "only members remove themselves")
SELF_REMOVE_TWICE: Final = _rule("self-remove-twice", _SELF_REMOVE, "a member sends one SelfRemove in an epoch")
SELF_REMOVE_BY_VALUE: Final = _rule(
    "self-remove-by-value", _SELF_REMOVE, "a commit covers a SelfRemove by reference only"
)

# Lists of proposals
OWN_UPDATE: Final = _rule("own-update", "12.2", "a commit covers an Update of the committer")
OWN_REMOVE: Final = _rule("own-remove", "12.2", "a commit removes the committer")
SAME_LEAF: Final = _rule("same-leaf", "12.2", "a commit covers several Updates or Removes of one leaf")
DUPLICATE_ADD: Final = _rule("duplicate-add", "12.2", "a commit adds the same client twice")
ALREADY_MEMBER: Final = _rule("already-member", "12.2", "a commit adds a client that is a member")
DUPLICATE_PSK: Final = _rule("duplicate-psk", "12.2", "a commit covers the same PSK twice")
TWO_GROUP_CONTEXT_EXTENSIONS: Final = _rule(
    "two-group-context-extensions", "12.2", "a commit covers several GroupContextExtensions"
)
REINIT_ALONE: Final = _rule("reinit-alone", "12.2", "a ReInit is committed together with other proposals")
PROPOSAL_SUPPORT: Final = _rule(
    "proposal-support", "12.2", "a member does not support a proposal type that is committed"
)
EXTERNAL_COMMIT_INIT: Final = _rule("external-commit-init", "12.2", "an external commit has exactly one ExternalInit")
EXTERNAL_COMMIT_REMOVE: Final = _rule("external-commit-remove", "12.2", "an external commit has at most one Remove")
EXTERNAL_COMMIT_PROPOSAL: Final = _rule("external-commit-proposal", "12.2", "this proposal is not for external commits")
EXTERNAL_COMMIT_REFERENCE: Final = _rule(
    "external-commit-reference", "12.4.3.2", "an external commit covers only SelfRemoves by reference"
)

# Paths
PATH_MISSING: Final = _rule("path-missing", "12.4", "the commit needs an UpdatePath")
PATH_LENGTH: Final = _rule("path-length", "7.5", "the UpdatePath is not as long as the filtered direct path")
PATH_CIPHERTEXTS: Final = _rule("path-ciphertexts", "7.6", "a path secret is not sealed once for each of its receivers")
PATH_KEY: Final = _rule("path-key", "5.1.1", "a key in the UpdatePath is no key of the suite")
PATH_KEY_REUSED: Final = _rule(
    "path-key-reused", "12.4.2", "a key in the UpdatePath is in the tree or in the path twice"
)
PATH_PARENT_HASH: Final = _rule("path-parent-hash", "7.9.2", "the committer's leaf has the wrong parent hash")

# Welcome, GroupInfo and whole trees
WELCOME_EMPTY: Final = _rule("welcome-empty", "12.4.3.1", "the Welcome is for nobody")
UNKNOWN_SUITE: Final = _rule("unknown-suite", "17.1", "the cipher suite is not known here")
GROUP_INFO_SIGNER: Final = _rule("group-info-signer", "12.4.3.1", "the leaf of the GroupInfo's signer is blank")
GROUP_INFO_SIGNATURE: Final = _rule("group-info-signature", "12.4.3.1", "the GroupInfo's signature is wrong")
GROUP_INFO_LENGTH: Final = _rule(
    "group-info-length", "8.2", "a hash or tag in the GroupInfo is not of the suite's size"
)
FIRST_EPOCH: Final = _rule("first-epoch", "11", "a group begins with one member and no transcript")
TREE_NEEDED: Final = _rule(
    "ratchet-tree-needed", "semantics: public-group-state", "the GroupInfo has no ratchet_tree and none is known"
)
TREE_MALFORMED: Final = _rule("tree-malformed", "12.4.3.3", "the ratchet tree does not parse")
TREE_HASH: Final = _rule("tree-hash", "12.4.3.1", "the tree does not have the hash that the GroupInfo states")
TREE_PARENT_HASH: Final = _rule("tree-parent-hash", "7.9.2", "a parent node is not parent-hash valid")
TREE_UNMERGED: Final = _rule(
    "tree-unmerged", "12.4.3.1", "unmerged leaves are not sorted, below their node and complete"
)
GROUP_INFO_TAG: Final = _rule("group-info-tag", "12.4.3", "the GroupInfo's confirmation tag is not the commit's")
GROUP_INFO_CONTRADICTS: Final = _rule(
    "group-info-contradicts", "12.4.1", "the GroupInfo is not of the state its commit leads to"
)


def rules_table() -> str:
    """Return all rules as a Markdown table in the order of their sections: docs/mls.md has it, and a test compares."""
    rows = sorted(RULES.values(), key=lambda rule: _order(rule.section))
    return "\n".join(
        ["| section | verdict | it says |", "| --- | --- | --- |"]
        + [f"| {rule.section} | `{rule.name}` | {rule.text} |" for rule in rows]
    )


def _order(section: str) -> tuple[int, list[int], str]:
    head, _, number = section.rpartition(" section ")
    if head != "RFC 9420":
        return 1, [], section
    return 0, [int(part) for part in number.split(".")], section
