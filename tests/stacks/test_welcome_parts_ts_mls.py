"""ts-mls clients join by a Welcome that has only the secrets for one provider's devices."""

from __future__ import annotations

from mimids.ds.following.outgoing_welcomes import encode_part
from mimids.store.welcomes import Offered
from mimids.wire.ids import KeyPackageRef
from tests.support.ts_mls import running


def test_ts_mls_members_join_by_their_part_of_a_welcome() -> None:
    with running("ts_mls_welcome.mjs") as members:
        made = members.read()
        refs = [KeyPackageRef(bytes.fromhex(each)) for each in made["references"]]
        parts = [encode_part(Offered(bytes.fromhex(made["welcome"]), frozenset(each))) for each in (refs[:2], refs[2:])]
        for newcomer, (own, other) in enumerate([parts, parts, parts[::-1]]):
            assert "refused" in members.ask(newcomer=newcomer, welcome=other.hex())
            assert members.ask(newcomer=newcomer, welcome=own.hex()) == {"joined": made["joined"]}
