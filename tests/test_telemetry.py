from __future__ import annotations

import io
import json
import logging

import attrs
import pytest

from mimids.telemetry import EVENTS_KEPT, Format, Level, Telemetry, new_telemetry
from mimids.wire.ids import ProviderId

A = ProviderId("a.example")


class Deaf(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def telemetry(format: Format = "json", level: Level = "info") -> tuple[Telemetry, io.StringIO]:
    to = io.StringIO()
    return new_telemetry(A, format=format, level=level, to=to), to


def test_a_json_line_is_one_object_with_its_fields_in_order() -> None:
    made, to = telemetry()
    made.log.info("low stock", left=3, peer=None, note="a\nb")
    (line,) = to.getvalue().splitlines()
    fields = json.loads(line)
    assert list(fields) == ["timestamp", "level", "event", "provider", "left", "note"]
    assert fields["timestamp"].endswith("Z")
    assert (fields["event"], fields["left"], fields["note"]) == ("low stock", 3, "a\nb")


def test_a_text_line_is_readable_and_no_value_can_start_a_line() -> None:
    made, to = telemetry("text")
    made.log.warning("a hub contradicts itself", peer="b.example", rule="x y\n2030-01-01 critical fake")
    (line,) = to.getvalue().splitlines()
    assert line.endswith(
        r'warning  a hub contradicts itself provider=a.example peer=b.example rule="x y\n2030-01-01 critical fake"'
    )


@pytest.mark.parametrize("format", ["json", "text"])
def test_an_error_comes_with_its_traceback(format: Format) -> None:
    made, to = telemetry(format)
    try:
        raise RuntimeError("sabotaged")
    except RuntimeError as error:
        made.log.error("a handler failed", exc_info=error)
    assert "Traceback" in to.getvalue()
    assert "RuntimeError: sabotaged" in to.getvalue()


@pytest.mark.parametrize(("level", "heard"), [("debug", 5), ("info", 4), ("warning", 3), ("error", 2), ("critical", 1)])
def test_lines_below_the_level_are_not_written(level: Level, heard: int) -> None:
    made, to = telemetry(level=level)
    for say in (made.log.debug, made.log.info, made.log.warning, made.log.error, made.log.critical):
        say("something")
    assert len(to.getvalue().splitlines()) == heard


def test_the_standard_librarys_logger_writes_here_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    made, to = telemetry()
    made.logger.error("%s failed", "it", exc_info=ValueError("why"))
    made.logger.debug("not heard")
    made.logger.critical("the end")
    first, second = map(json.loads, to.getvalue().splitlines())
    assert (first["level"], first["event"]) == ("error", "it failed")
    assert "ValueError: why" in first["exception"]
    assert second["level"] == "critical"
    assert not caplog.records
    assert made.logger is not logging.getLogger("mimids")


def test_events_of_unlinkable_requests_are_counted_and_their_kinds_are_bounded() -> None:
    made, to = telemetry()
    for _ in range(2):
        made.event_unlinkable("low stock", cipher_suite=1)
    for number in range(2 * EVENTS_KEPT):
        made.event_unlinkable("claims without Welcomes", token=number)
    assert not to.getvalue(), "the time of a line would be that of the request"
    made.log_counts()
    lines = [json.loads(line) for line in to.getvalue().splitlines()]
    assert len(lines) == EVENTS_KEPT
    assert (lines[0]["event"], lines[0]["cipher_suite"], lines[0]["count"]) == ("low stock", 1, 2)
    made.log_counts()
    assert len(to.getvalue().splitlines()) == EVENTS_KEPT


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("peer", [None, ProviderId("b.example")])
def test_the_line_of_a_request_is_formatted_as_any_other(
    format: Format, peer: ProviderId | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0625)
    made, to = telemetry(format)
    made.request("hub-send", "ok", id_="0123456789abcdef", peer=peer, received=7, sent=0, milliseconds=1.26)
    made.log.info("request", route="hub-send", code="ok", peer=peer, received=7, sent=0, ms=1.3, id="0123456789abcdef")
    one, other = to.getvalue().splitlines()
    assert one == other
    assert "2023-11-14T22:13:20.062Z" in one


def test_a_broken_stream_is_ignored() -> None:
    new_telemetry(A, to=Deaf()).log.info("hello")


def test_unlinkable_requests_are_only_counted() -> None:
    made, to = telemetry()
    for code in ("ok", "ok", "busy"):
        made.request_unlinkable("relay", code)
    assert not to.getvalue()
    made.request("me", "ok", id_="1", peer=None, received=0, sent=0, milliseconds=1)
    made.log_counts()
    lines = [json.loads(line) for line in to.getvalue().splitlines()]
    assert [(line["event"], line["route"], line["code"], line.get("count")) for line in lines] == [
        ("request", "me", "ok", None),
        ("requests", "relay", "busy", 1),
        ("requests", "relay", "ok", 2),
    ]
    made.log_counts()
    assert len(to.getvalue().splitlines()) == 3


@attrs.frozen
class Queue:
    waiting_writes: int
    writable: bool
    of_no_use: int = 7


def test_metrics_are_read_from_statistics_records() -> None:
    made, _ = telemetry()
    made.watch("store", lambda: Queue(3, True))
    made.request_unlinkable("relay", "ok")
    made.request_unlinkable("relay", "ok")
    text = made.metrics().decode()
    assert 'mimids_requests_total{code="ok",route="relay"} 2.0' in text
    assert "mimids_store_waiting_writes 3.0" in text
    assert "of_no_use" not in text, "what decides nothing is not shown"
    assert "mimids_store_writable 1.0" in text
    assert made.metrics() == text.encode()
