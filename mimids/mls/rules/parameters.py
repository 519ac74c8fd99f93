"""The demands in a GroupContext's extensions, parsed once for all epochs that share the extensions."""

from __future__ import annotations

import attrs

from mimids.mls.code_points import DEFAULT_EXTENSIONS, DEFAULT_PROPOSALS, ExtensionType, ProposalType
from mimids.mls.components import AppDataDictionary, dictionary_of
from mimids.mls.faults import FaultError
from mimids.mls.group_info import ExternalSender, external_senders, required_capabilities
from mimids.mls.identity import certificate_fault
from mimids.mls.leaf_node import Extension, extension_data, repeated
from mimids.mls.rules.verdict import (
    CREDENTIAL_SUPPORT,
    DUPLICATE_EXTENSION,
    EXTENSION_SUPPORT,
    GROUP_EXTENSIONS,
    REQUIRED_CAPABILITIES,
    reject,
)
from mimids.mls.suites import Suite
from mimids.mls.support import Support
from mimids.wire.codec import WireError


@attrs.frozen
class Parameters:
    """The group's demands on its members, and its external senders. Default types are left out (section 7.2)."""

    extension_types: frozenset[int]
    required_extensions: frozenset[int]
    required_proposals: frozenset[int]
    required_credentials: frozenset[int]
    external_senders: tuple[ExternalSender, ...]
    dictionary: AppDataDictionary | None
    dictionary_octets: bytes | None

    @property
    def dictionary_is_kept(self) -> bool:
        """Tell whether only AppDataUpdate may change the dictionary (draft-ietf-mls-extensions section 4.7)."""
        return ProposalType.APP_DATA_UPDATE in self.required_proposals


def check_unique(extensions: tuple[Extension, ...]) -> None:
    """Check that no type occurs twice (RFC 9420 section 13.4)."""
    if repeated(extensions):
        reject(DUPLICATE_EXTENSION)


def parameters_of(extensions: tuple[Extension, ...], suite: Suite) -> Parameters:
    """Parse a GroupContext's extensions; raise `RuleError` if they are not valid there."""
    check_unique(extensions)
    try:
        required = required_capabilities(extensions)
        senders = external_senders(extensions)
        dictionary = dictionary_of(extensions)
    except WireError as error:
        reject(GROUP_EXTENSIONS, str(error))
    except FaultError as error:
        reject(GROUP_EXTENSIONS, error.fault.rule, section=error.fault.section)
    for sender in senders:
        fault = certificate_fault(sender.credential, sender.signature_key)
        if fault is not None:
            reject(GROUP_EXTENSIONS, fault.rule, section=fault.section)
    return Parameters(
        frozenset(int(each.extension_type) for each in extensions) - DEFAULT_EXTENSIONS,
        frozenset(map(int, required.extension_types)) - DEFAULT_EXTENSIONS if required else frozenset(),
        frozenset(map(int, required.proposal_types)) - DEFAULT_PROPOSALS if required else frozenset(),
        frozenset(map(int, required.credential_types)) if required else frozenset(),
        senders,
        dictionary,
        extension_data(extensions, ExtensionType.APP_DATA_DICTIONARY),
    )


def check_required(parameters: Parameters, support: Support) -> None:
    """Check that `support`, common to some members, meets the demands (RFC 9420 sections 7.3, 11.1, 13.4)."""
    if (
        not parameters.required_extensions <= support.extensions
        or not parameters.required_proposals <= support.proposals
        or not parameters.required_credentials <= support.credentials
    ):
        reject(REQUIRED_CAPABILITIES)
    if not parameters.extension_types <= support.extensions:
        reject(EXTENSION_SUPPORT)


def check_members(parameters: Parameters, support: Support | None) -> None:
    """Check the common support of all members, None without members (RFC 9420 sections 7.3, 11.1, 13.4).

    Whether members list the group's version and cipher suite is not checked. Members have to support both (section 11),
    but no receiver has to check this, and the members of some stacks do not list them.
    """
    if support is None:
        return
    check_required(parameters, support)
    if not support.credentials_in_use <= support.credentials:
        reject(CREDENTIAL_SUPPORT)
