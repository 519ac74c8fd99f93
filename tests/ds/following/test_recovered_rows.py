"""Groups of which a recovery knows only the id: when they are removed."""

from __future__ import annotations

from pathlib import Path

from mimids.ds.following.recovered_rows import remove_if_free
from mimids.store import groups, providers, recoveries
from mimids.store.engine.access import migrate, write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import MLS10, CipherSuite, GroupId, ProviderId

A, B, C = ProviderId("a.example"), ProviderId("b.example"), ProviderId("c.example")


def test_a_group_without_partitions_is_kept_until_all_that_were_asked_about_it_have_answered(tmp_path: Path) -> None:
    migrate(tmp_path / "db")

    def work(tx: Tx) -> None:
        hub, one, other = (providers.ensure_provider(tx, domain) for domain in (A, B, C))
        named = GroupId(b"named by both")
        group = groups.add_group(
            tx,
            hub=hub,
            group_id=named,
            version=MLS10,
            cipher_suite=CipherSuite(0),
            creation_digest=None,
            creator=None,
            now=Milliseconds(0),
        ).id
        for provider in (one, other):
            recoveries.ask(tx, group, provider)
            recoveries.ask(tx, recoveries.ALL_GROUPS, provider)
        recoveries.note_answer(tx, group, one)
        remove_if_free(tx, group)
        assert groups.find_group(tx, hub, named) is not None, "the other provider may have its messages"
        recoveries.release(tx, group, other)
        remove_if_free(tx, recoveries.ALL_GROUPS)
        assert groups.find_group(tx, hub, named) is not None
        remove_if_free(tx, group)
        assert groups.find_group(tx, hub, named) is None

    write_here(tmp_path / "db", work)
