"""The data of a page: all answers of commands and all lists on the page are read in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from mimids.ds.commands import Context, JsonObject, command_named
from mimids.http.console import offers
from mimids.http.console.answers import facts_of, table_of, tables_of
from mimids.http.console.parts import DataTable, Hyperlink, PageSection
from mimids.http.console.rendering import PageFrame, render
from mimids.store.engine.transaction import Tx
from mimids.wire.ids import ProviderId

PER_PAGE: Final = 50
_ROW_DIGITS: Final = 18  # of the number of a row, at most
_KEPT: Final = ("search", "all")  # the link to the next page of a list keeps these keys of the query


@attrs.frozen
class Search:
    """The search field of a list."""

    label: str
    text: str


@attrs.frozen
class Snapshot:
    """A transaction, with what pages need beside it; `query` has the values behind the page's path."""

    tx: Tx
    context: Context
    frame: PageFrame
    query: Mapping[str, str]

    @property
    def ours(self) -> ProviderId:
        """Return the provider whose console this is."""
        return self.context.config.provider

    @property
    def back(self) -> str:
        """Return the path of the page; the forms that the page offers lead back to it."""
        return self.frame.path

    def text(self, name: str) -> str:
        """Return a value of the query without spaces around it, empty if there is none."""
        return self.query.get(name, "").strip()

    def number(self, name: str) -> int | None:
        """Return a number in the query, None if there is none."""
        text = self.query.get(name, "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= _ROW_DIGITS else None

    # --- answers of commands --------------------------------------------------------------------------------------

    def answer(self, name: str, given: Mapping[str, object] | None = None) -> JsonObject:
        """Return the answer of a reading command; raise the errors of the command."""
        command = command_named(name)
        return command.run(self.tx, self.context, command.given(given or {}))

    def section(
        self, title: str, name: str, given: Mapping[str, object] | None = None, acts: Sequence[Hyperlink] = ()
    ) -> PageSection:
        """Return the answer of a reading command as a section."""
        return self.section_of(title, name.replace(" ", "-"), self.answer(name, given), acts)

    def section_of(self, title: str, id_: str, answer: JsonObject, acts: Sequence[Hyperlink] = ()) -> PageSection:
        """Return the answer of a command as a section of the page."""
        return PageSection(title, id_, tables_of(answer, self.ours), facts_of(answer, self.ours), acts)

    def table_with_acts(
        self,
        noun: str,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        members: Mapping[str, str],
        fixed: Mapping[str, str] | None = None,
    ) -> DataTable:
        """Return rows as a table that offers the commands of a noun.

        For each argument, `members` names the member of the row that has its value; `fixed` has the arguments that are
        the same for all rows.
        """
        of_page = fixed or {}

        def acts(row: Mapping[str, Any]) -> Sequence[Hyperlink]:
            of_row = {name: str(row[member]) for name, member in members.items() if row.get(member) is not None}
            return offers.of_row(noun, {**of_page, **of_row}, of_page, self.back)

        return table_of(name, rows, self.ours, acts)

    # --- lists ----------------------------------------------------------------------------------------------------

    def page(
        self,
        title: str,
        sections: Sequence[PageSection],
        *,
        search: Search | None = None,
        older: Hyperlink | None = None,
        live: bool = True,
    ) -> str:
        """Return a page of sections; `older` leads to the next page of a list. A `live` page refreshes itself."""
        return render("list.html", self.frame, title, sections=sections, search=search, older=older, live=live)

    def older(self, found: Sequence[Any], key: str, value: object) -> Hyperlink | None:
        """Return the link to the next page of a list, which begins after `value`; None if this page is not full."""
        if len(found) < PER_PAGE:
            return None
        kept = {name: text for name, text in self.query.items() if name in _KEPT}
        return Hyperlink("Next page", f"{self.frame.path}?{urlencode(kept | {key: str(value)})}")
