"""The provider's key in the external_senders of a new group: as RFC 9420 codes it, and as ts-mls does."""

from __future__ import annotations

import json

import pytest

from mimids.client import ProviderSignatureKey, external_senders_data
from mimids.http.api.public import EXTERNAL_SENDER_EXAMPLE
from mimids.mls.code_points import ExtensionType
from mimids.mls.group_info import external_senders
from mimids.mls.leaf_node import Extension

KEY = json.loads(EXTERNAL_SENDER_EXAMPLE)


@pytest.mark.parametrize("bare", [True, False])
def test_a_key_is_encoded_in_both_forms(bare: bool) -> None:
    key = ProviderSignatureKey.read(KEY)
    data = external_senders_data([key], bare=bare)
    (sender,) = external_senders((Extension(ExtensionType.EXTERNAL_SENDERS, data),))
    assert (sender.signature_key, sender.credential.content) == (key.signature_key, b"mimi://a.example")
    assert (data == key.external_sender) is bare


def test_only_the_conformant_form_has_several_keys() -> None:
    key = ProviderSignatureKey.read(KEY)
    assert len(external_senders((Extension(ExtensionType.EXTERNAL_SENDERS, external_senders_data([key, key])),))) == 2
    for keys in ((), (key, key)):
        with pytest.raises(ValueError, match="exactly one"):
            external_senders_data(keys, bare=True)


def test_a_key_whose_parts_differ_is_refused() -> None:
    with pytest.raises(ValueError, match="does not contain"):
        ProviderSignatureKey.read(KEY | {"credential": "AAAA"})
