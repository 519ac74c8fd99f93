"""The commands in the console: their list, their forms, and their execution; also the start and end of a session."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import trio
from quart import g, request
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import MethodNotAllowed

from mimids.ds.commands import COMMANDS, Command, JsonObject, command_named
from mimids.ds.commands.performing import perform
from mimids.ds.operator_sessions import SESSION_SECONDS
from mimids.ds.services import Services
from mimids.errors import MimiError, NotFound
from mimids.http.console import forms, offers
from mimids.http.console.answers import facts_of, tables_of
from mimids.http.console.parts import CodeText, DataTable, Hyperlink, PageSection
from mimids.http.console.rendering import render
from mimids.http.console.requests import (
    OLD_LINK,
    TOKEN,
    ConsoleRefused,
    admitted,
    cookie_name,
    current_frame,
    current_session,
)

if TYPE_CHECKING:
    from quart_trio import QuartTrio

LEAVING: Final = "leave"  # the purpose of the form that ends a session
_BACK: Final = re.compile(r"/console(/[\w.~!$&'()*+,;=:@%-]+)*")  # the path of a page of the console
_SECRETS: Final = ("token", "bearer_token", "link")  # members of answers that are shown only once
_FIRST: Final = "General"


class ActingPages:
    """The handlers of forms and acts, and of sessions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, app: QuartTrio) -> None:
        """Add the routes."""
        app.add_url_rule("/console/commands", "commands", self.commands, methods=["GET"])
        app.add_url_rule("/console/commands/<path:name>", "form", self.form, methods=["GET"])
        app.add_url_rule("/console/commands/<path:name>", "act", self.act, methods=["POST"])
        app.add_url_rule("/console/enter", "enter", self.enter, methods=["GET"])
        app.add_url_rule("/console/leave", "leave", self.leaving, methods=["GET"])
        app.add_url_rule("/console/leave", "left", self.leave, methods=["POST"])

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def enter(self) -> TrioResponse:
        """Start a session with the secret of a link.

        A HEAD request or a browser's prefetch does not use the link up.
        """
        ahead = "prefetch" in request.headers.get("Sec-Purpose", request.headers.get("Purpose", ""))
        if request.method != "GET" or ahead:
            raise MethodNotAllowed(["GET"])
        cookie = self._services.operator_sessions.start(request.args.get("secret", ""))
        if cookie is None:
            raise ConsoleRefused(OLD_LINK)
        response = TrioResponse("", HTTPStatus.SEE_OTHER, headers={"Location": "/console"})
        response.set_cookie(
            cookie_name(), cookie, max_age=SESSION_SECONDS, path="/console", httponly=True, samesite="Strict"
        )
        return response

    async def leaving(self) -> str:
        """Return the form that ends the session."""
        frame = current_frame(self._services)
        token = "" if frame.session is None else frame.session.new_form(LEAVING, frame.now)
        return render("leave.html", frame, "End the session", token_name=TOKEN, token=token)

    async def leave(self) -> TrioResponse:
        """End the session."""
        await admitted(self._services, LEAVING)
        self._services.operator_sessions.end(request.cookies[cookie_name()])
        response = TrioResponse("", HTTPStatus.SEE_OTHER, headers={"Location": "/console"})
        response.delete_cookie(cookie_name(), path="/console", httponly=True, samesite="Strict")
        return response

    # --- commands ---------------------------------------------------------------------------------------------------

    async def commands(self) -> str:
        """Return the list of all commands by noun."""
        by_noun: dict[str, list[list[Any]]] = {}
        for command in COMMANDS:
            noun = command.name.partition(" ")[0] if " " in command.name else _FIRST
            link = Hyperlink(
                command.name, offers.form_path(command), act=command.writes, grave=offers.is_grave(command)
            )
            by_noun.setdefault(noun, []).append([link, command.summary])
        sections = [
            PageSection(noun.capitalize(), noun.lower(), [DataTable(("command", "what it does"), rows, "")])
            for noun, rows in by_noun.items()
        ]
        frame = current_frame(self._services)
        return render("list.html", frame, "Commands", sections=sections, search=None, older=None, live=False)

    async def form(self, name: str) -> str:
        """Return the form of a command. Run a read-only command if its form was sent, or if it takes no arguments."""
        command, filled = _command(name), request.args.to_dict()
        if command.writes or (command.arguments and "run" not in filled):
            return self._form_page(command, filled)
        try:
            answer = await self._run(command, filled, "console")
        except MimiError as error:
            return self._form_page(command, filled, error)
        return await self._answer_page(command, answer, filled)

    async def act(self, name: str) -> tuple[str, int]:
        """Carry out a command that writes, and return its answer."""
        command = _command(name)
        if not command.writes:
            raise MethodNotAllowed(["GET"])
        session, fields = await admitted(self._services, command.name)
        filled = fields.to_dict()
        try:
            answer = await self._run(command, filled, f"console {session.id}")
        except MimiError as error:
            return self._form_page(command, filled, error), error.status
        return await self._answer_page(command, answer, filled), HTTPStatus.OK

    async def _run(self, command: Command, filled: Mapping[str, str], actor: str) -> JsonObject:
        given = forms.arguments(command, filled, self._services.clock.now())
        return await perform(self._services, command, given, actor)

    def _form_page(self, command: Command, filled: Mapping[str, str], error: MimiError | None = None) -> str:
        """Return the form of a command as it was filled in, with the reason of a refusal if there was one."""
        if error is not None:
            g.code = error.code  # for the log
        frame, session = current_frame(self._services), current_session(self._services)
        return render(
            "command.html",
            frame,
            _title(command),
            command=command,
            grave=offers.is_grave(command),
            path=offers.form_path(command),
            question=forms.question(command, filled),
            fields=forms.fields(command, filled),
            token_name=TOKEN,
            token="" if session is None or not command.writes else session.new_form(command.name, frame.now),
            back=_back(filled),
            error=None if error is None else str(error),
            hint=None if error is None else command.hints.get(type(error)),
        )

    async def _answer_page(self, command: Command, answer: JsonObject, filled: Mapping[str, str]) -> str:
        ours = self._services.config.provider
        return await trio.to_thread.run_sync(
            partial(
                render,
                "answer.html",
                current_frame(self._services),
                _title(command),
                command=command,
                secrets=[(name, CodeText(str(answer[name]))) for name in _SECRETS if name in answer],
                facts=facts_of({name: value for name, value in answer.items() if name not in _SECRETS}, ours),
                tables=tables_of(answer, ours),
                form=offers.form_path(command),
                back=_back(filled),
            )
        )


def _command(name: str) -> Command:
    try:
        return command_named(name.replace("/", " "))
    except KeyError:
        raise NotFound("there is no command of this name") from None


def _title(command: Command) -> str:
    return command.name[0].upper() + command.name[1:].replace("-", " ")


def _back(filled: Mapping[str, str]) -> str | None:
    """Return the page that offered the form, if it is one of ours."""
    back = filled.get("back", "")
    return back if _BACK.fullmatch(back) else None
