"""The console of a provider in memory: its pages as XML, sessions, and forms as a browser would send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

import attrs

from mimids.http.api.operator import HOSTS, OPERATOR
from mimids.http.console.mount import with_console
from tests.support.inmemory import Answered, InMemory
from tests.support.provider import Assembled

ORIGIN = "http://localhost"


def parsed(page: bytes) -> ET.Element:
    """Return a page as XML, which ours are."""
    return ET.fromstring(page.decode().lstrip().removeprefix("<!doctype html>"))  # noqa: S314  # our own


def texts(page: bytes | ET.Element) -> list[str]:
    """Return the texts of a page, without spaces around them."""
    root = page if isinstance(page, ET.Element) else parsed(page)
    return [" ".join(text.split()) for text in root.itertext() if text.strip()]


def links(page: bytes) -> dict[str, str]:
    """Return where the links of a page's content lead, by text."""
    main = parsed(page).find(".//main")
    assert main is not None
    return {"".join(each.itertext()).strip(): each.attrib["href"] for each in main.iter("a")}


@attrs.define
class Browser:
    """A browser on the console of one provider; `cookie` is that of its session."""

    client: InMemory
    cookie: str | None = None

    @classmethod
    def on(cls, running: Assembled) -> Browser:
        """Return a browser without a session."""
        app = running.app(OPERATOR, hosts=HOSTS)
        return cls(InMemory(with_console(app, running.services)))

    @classmethod
    async def with_session(cls, running: Assembled) -> Browser:
        """Return a browser that has opened a one-time link."""
        browser = cls.on(running)
        secret, _ = running.services.operator_sessions.new_link()
        await browser.enter(secret)
        assert browser.cookie is not None
        return browser

    async def enter(self, secret: str) -> Answered:
        """Open a one-time link."""
        answer = await self.get(f"/console/enter?secret={secret}")
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def get(self, path: str, **headers: str) -> Answered:
        """Load a page."""
        return await self.client.ask("GET", path, headers=self._headers(headers))

    async def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answered:
        """Send a form as it is, without a token unless there is one among the fields."""
        sent = {"origin": ORIGIN, "content-type": "application/x-www-form-urlencoded", **headers}
        return await self.client.ask("POST", path, urlencode(fields).encode(), self._headers(sent))

    async def form(self, path: str) -> dict[str, str]:
        """Load a form; return the fields as they are filled, the token among them."""
        answer = await self.get(path)
        assert answer.status == 200, answer.body.decode()
        form = next(each for each in parsed(answer.body).iter("form") if each.attrib["method"] == "post")
        return {
            field.attrib["name"]: _value(field) for field in form.iter() if "name" in field.attrib if _is_sent(field)
        }

    async def act(self, path: str, **filled: str) -> Answered:
        """Load the form of a command, fill it in, and send it."""
        fields = await self.form(path)
        return await self.post(path.partition("?")[0], {**fields, **filled})

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        mine: dict[str, Any] = {} if self.cookie is None else {"cookie": self.cookie}
        return {**mine, **{name.replace("_", "-"): value for name, value in given.items()}}


def _is_sent(field: ET.Element) -> bool:
    return field.attrib.get("type") != "checkbox" or "checked" in field.attrib


def _value(field: ET.Element) -> str:
    if field.tag == "textarea":
        return field.text or ""
    if field.tag == "select":
        chosen = [each for each in field if "selected" in each.attrib] or list(field)
        return chosen[0].attrib["value"]
    return field.attrib.get("value", "")
