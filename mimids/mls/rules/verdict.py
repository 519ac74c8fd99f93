"""The verdicts on a message, and the table of all rules that can refuse one (printed into docs/mls.md).

`Invalid` means that a rule is certainly broken. `Unknown` lists the facts that were missing for a judgement. `Valid`
means that nothing visible is wrong; it carries the next state and is therefore defined in `public_group`. A rule
refuses a message only if the violation is certain without secrets; missing information never leads to a refusal.
"""

from __future__ import annotations

from typing import Final, NoReturn

import attrs


@attrs.frozen
class Rule:
    """One rule: a name to search for, the section that states it, and a sentence that may be shown to users."""

    name: str
    section: str
    text: str


@attrs.frozen
class Invalid:
    """Certainly invalid; safe to show to users.

    If the rule stands for several rules of the RFC, `section` is the section of the broken rule.
    """

    rule: Rule
    section: str
    detail: str

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.rule.name}: {self.detail} ({self.section})"


@attrs.frozen
class Missing:
    """Something that was missing for a judgement: its kind, and its name (a reference in hex, a code point)."""

    kind: str
    which: str = ""

    def __str__(self) -> str:
        """Render as one line."""
        return f"{self.kind} {self.which}".rstrip()


@attrs.frozen
class Unknown:
    """Not refused. For a commit, the next state is unknown; for another message, it is unknown if it is valid."""

    missing: tuple[Missing, ...]


# The kinds of Missing
PROPOSAL: Final = "unseen proposal"
PROPOSAL_TYPE: Final = "effect of proposal type"
COMPONENT: Final = "effect of an update of component"
ENCRYPTED_COMMIT: Final = "content of an encrypted commit"
STATE: Final = "state of the epoch"


class RuleError(Exception):
    """A message or object breaks a rule; carries the verdict."""

    def __init__(self, invalid: Invalid) -> None:
        self.invalid = invalid


def reject(rule: Rule, detail: str = "", *, section: str = "") -> NoReturn:
    """Raise `RuleError` for a rule; `detail` and `section` default to the rule's own."""
    raise RuleError(Invalid(rule, section or rule.section, detail or rule.text))


def reject_covering(why: Invalid) -> NoReturn:
    """Raise `RuleError` for a commit that covers a refused proposal: the commit is refused for the same reason."""
    reject(why.rule, f"the commit covers a refused proposal: {why.detail}", section=why.section)


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
WRONG_EPOCH: Final = _rule("wrong-epoch", "12.4.2", "the message is from another epoch")
LAST_EPOCH: Final = _rule("last-epoch", "8.1", "the epoch number has reached its maximum, 2^64 - 1")
REINITIALIZED: Final = _rule("reinitialized", "12.4.2", "the group was reinitialized and accepts no more messages")
APPLICATION_IN_CLEAR: Final = _rule("application-in-clear", "6", "application messages must be PrivateMessages")
SENDER_CONTENT: Final = _rule("sender-content", "6.1", "this kind of sender may not send this kind of content")
BLANK_SENDER: Final = _rule("blank-sender", "6.1", "the sender's leaf is blank or outside the tree")
UNLISTED_SENDER: Final = _rule("unlisted-sender", "12.1.8.1", "the sender is not in external_senders")
SIGNATURE: Final = _rule("signature", "6.1", "the message's signature is wrong in this GroupContext")
CONFIRMATION_TAG_LENGTH: Final = _rule(
    "confirmation-tag-length", "6.1", "the confirmation tag is not as long as the suite's MAC"
)
MEMBERSHIP_TAG_LENGTH: Final = _rule(
    "membership-tag-length", "6.2", "the membership tag is not as long as the suite's MAC"
)
SENDER_DATA_LENGTH: Final = _rule("sender-data-length", "6.3.2", "the encrypted sender data has the wrong length")
CIPHERTEXT_LENGTH: Final = _rule(
    "ciphertext-length", "6.3.1", "the ciphertext is shorter than an encrypted empty message"
)

# Leaf nodes
LEAF_NODE: Final = _rule("leaf-node", "7.3", "the leaf node is invalid")
LEAF_SOURCE: Final = _rule("leaf-source", "7.3", "the leaf node has the wrong leaf_node_source for its use")
LEAF_SIGNATURE: Final = _rule("leaf-signature", "7.3", "the leaf node's signature is wrong")
LEAF_KEY_KEPT: Final = _rule(
    "leaf-key-kept", "7.3", "the new leaf node keeps the encryption key of the leaf node that it replaces"
)
CREDENTIAL_SUCCESSOR: Final = _rule("credential-successor", "5.3.1", "the new credential names another user")
REQUIRED_CAPABILITIES: Final = _rule("required-capabilities", "11.1", "a member lacks a required capability")
EXTENSION_SUPPORT: Final = _rule("extension-support", "13.4", "a member does not support an extension of the group")
CREDENTIAL_SUPPORT: Final = _rule("credential-support", "7.3", "a member does not support a credential type in use")
SIGNATURE_KEY_UNIQUE: Final = _rule("signature-key-unique", "7.3", "two members have the same signature key")
ENCRYPTION_KEY_UNIQUE: Final = _rule("encryption-key-unique", "7.3", "two nodes have the same encryption key")
DUPLICATE_EXTENSION: Final = _rule("duplicate-extension", "13.4", "an extension type occurs twice in a list")

# Single proposals
KEY_PACKAGE: Final = _rule("key-package", "10.1", "the KeyPackage is invalid")
KEY_PACKAGE_GROUP: Final = _rule(
    "key-package-group", "10.1", "the KeyPackage has another protocol version or cipher suite than the group"
)
REMOVE_BLANK: Final = _rule("remove-blank", "12.1.3", "the leaf to remove is blank or outside the tree")
PSK_NONCE: Final = _rule("psk-nonce", "12.1.4", "the psk_nonce is not as long as the suite's hash")
PSK_USAGE: Final = _rule(
    "psk-usage", "12.1.4", "a reinit or branch PSK may be used only in the new group's first commit"
)
REINIT_VERSION: Final = _rule("reinit-version", "12.1.5", "a ReInit goes back to a lower protocol version")
EXTERNAL_INIT: Final = _rule("external-init", "12.1.6", "an ExternalInit is allowed only in external commits")
KEM_OUTPUT: Final = _rule("kem-output", "8.3", "the KEM output does not fit the suite's KEM")
GROUP_EXTENSIONS: Final = _rule(
    "group-extensions", "12.1.7", "an extension of the GroupContext does not parse or is invalid"
)
EXTERNAL_PROPOSAL: Final = _rule("external-proposal", "12.1.8", "an external sender may not send this proposal")
NEW_MEMBER_ADD: Final = _rule("new-member-add", "6.1", "a new member may propose only an Add")
DICTIONARY_KEPT: Final = _rule(
    "dictionary-kept", _UPDATE, "the group requires AppDataUpdate, so nothing else may change the app_data_dictionary"
)
COMPONENT_UPDATE: Final = _rule(
    "component-update", _UPDATE, "the update does not parse or does not fit the component's data"
)
COMPONENT_ABSENT: Final = _rule("component-absent", _UPDATE, "the commit removes data that the component does not have")
COMPONENT_LIST: Final = _rule(
    "component-list", _UPDATE, "one commit removes a component's data twice, or both removes and updates it"
)
SELF_REMOVE_SENDER: Final = _rule("self-remove-sender", _SELF_REMOVE, "only members may send a SelfRemove")
SELF_REMOVE_TWICE: Final = _rule(
    "self-remove-twice", _SELF_REMOVE, "the member has already sent a SelfRemove in this epoch"
)
SELF_REMOVE_BY_VALUE: Final = _rule(
    "self-remove-by-value", _SELF_REMOVE, "a commit may cover a SelfRemove only by reference"
)

# Lists of proposals
OWN_UPDATE: Final = _rule("own-update", "12.2", "a commit covers an Update by its committer")
OWN_REMOVE: Final = _rule("own-remove", "12.2", "a commit removes its own committer")
SAME_LEAF: Final = _rule("same-leaf", "12.2", "a commit covers more than one Update or Remove of the same leaf")
DUPLICATE_ADD: Final = _rule("duplicate-add", "12.2", "a commit adds the same client twice")
ALREADY_MEMBER: Final = _rule("already-member", "12.2", "a commit adds a client that is already a member")
DUPLICATE_PSK: Final = _rule("duplicate-psk", "12.2", "a commit covers the same PSK twice")
TWO_GROUP_CONTEXT_EXTENSIONS: Final = _rule(
    "two-group-context-extensions", "12.2", "a commit covers more than one GroupContextExtensions"
)
REINIT_ALONE: Final = _rule("reinit-alone", "12.2", "a ReInit must be the only proposal of its commit")
PROPOSAL_SUPPORT: Final = _rule("proposal-support", "12.2", "a member does not support a proposal type in the commit")
EXTERNAL_COMMIT_INIT: Final = _rule(
    "external-commit-init", "12.2", "an external commit must have exactly one ExternalInit"
)
EXTERNAL_COMMIT_REMOVE: Final = _rule(
    "external-commit-remove", "12.2", "an external commit may have at most one Remove"
)
EXTERNAL_COMMIT_PROPOSAL: Final = _rule(
    "external-commit-proposal", "12.2", "this proposal is not allowed in an external commit"
)
EXTERNAL_COMMIT_REFERENCE: Final = _rule(
    "external-commit-reference", "12.4.3.2", "an external commit may cover only SelfRemoves by reference"
)

# Paths
PATH_MISSING: Final = _rule("path-missing", "12.4", "the commit needs an UpdatePath")
PATH_LENGTH: Final = _rule("path-length", "7.5", "the UpdatePath and the filtered direct path differ in length")
PATH_CIPHERTEXTS: Final = _rule(
    "path-ciphertexts", "7.6", "a path secret is not encrypted exactly once for each receiver"
)
PATH_KEY: Final = _rule("path-key", "5.1.1", "a key in the UpdatePath does not fit the suite")
PATH_KEY_REUSED: Final = _rule(
    "path-key-reused", "12.4.2", "a key in the UpdatePath occurs in the tree or twice in the path"
)
PATH_PARENT_HASH: Final = _rule("path-parent-hash", "7.9.2", "the committer's leaf has the wrong parent hash")

# Welcome, GroupInfo and whole trees
WELCOME_EMPTY: Final = _rule("welcome-empty", "12.4.3.1", "the Welcome has no recipients")
UNKNOWN_SUITE: Final = _rule("unknown-suite", "17.1", "the cipher suite is not supported")
GROUP_INFO_SIGNER: Final = _rule(
    "group-info-signer", "12.4.3.1", "the leaf of the GroupInfo's signer is blank or outside the tree"
)
GROUP_INFO_SIGNATURE: Final = _rule("group-info-signature", "12.4.3.1", "the GroupInfo's signature is wrong")
GROUP_INFO_LENGTH: Final = _rule(
    "group-info-length", "8.2", "a hash or tag in the GroupInfo has the wrong length for the suite"
)
FIRST_EPOCH: Final = _rule("first-epoch", "11", "a group must begin with one member and an empty transcript hash")
TREE_NEEDED: Final = _rule(
    "ratchet-tree-needed",
    "semantics: public-group-state",
    "the GroupInfo has no ratchet_tree, and the server does not know the tree",
)
TREE_MALFORMED: Final = _rule("tree-malformed", "12.4.3.3", "the ratchet tree does not parse")
TREE_HASH: Final = _rule("tree-hash", "12.4.3.1", "the tree does not have the tree hash in the GroupInfo")
TREE_PARENT_HASH: Final = _rule("tree-parent-hash", "7.9.2", "a parent node is not parent-hash valid")
TREE_UNMERGED: Final = _rule(
    "tree-unmerged",
    "12.4.3.1",
    "a node's unmerged leaves are unsorted, not below the node, or missing from a node in between",
)
GROUP_INFO_TAG: Final = _rule("group-info-tag", "12.4.3", "the GroupInfo's confirmation tag differs from the commit's")
GROUP_INFO_CONTRADICTS: Final = _rule(
    "group-info-contradicts", "12.4.1", "the GroupInfo does not match the state of its epoch"
)


def rules_table() -> str:
    """Return all rules as a Markdown table, sorted by section; a test compares it with the table in docs/mls.md."""
    rows = sorted(RULES.values(), key=lambda rule: _order(rule.section))
    return "\n".join(
        ["| section | rule | meaning |", "| --- | --- | --- |"]
        + [f"| {rule.section} | `{rule.name}` | {rule.text} |" for rule in rows]
    )


def _order(section: str) -> tuple[int, list[int], str]:
    head, _, number = section.rpartition(" section ")
    if head != "RFC 9420":
        return 1, [], section
    return 0, [int(part) for part in number.split(".")], section
