"""Chats that programs export as JSON: ChatGPT's, Claude's, Telegram's, Slack's. It turns them into talks.

ChatGPT   a list of {"mapping": {id: {"message", "parent"}}, "current_node"}; the branch that is shown is read
Claude    a list of {"chat_messages": [{"sender", "text", "created_at"}]}
Telegram  {"messages": [{"from", "text", "date"}]}, or {"chats": {"list": […]}} of all chats
Slack     a folder with users.json, and for each channel and day a list of {"type": "message", "user", "text", "ts"}

Test: pytest tests/readers/test_talks.py
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sideplug.readers.base import Record, Row
from sideplug.readers.report import Report
from sideplug.readers.talks import Said, Talk

YOU = "you"  # who asks an assistant
WORDLESS = "messages without words"
_SLACK_LINK = re.compile(r"<([^<>|]*)(?:\|([^<>]*))?>")
_SLACK_EVENTS = ("channel_join", "channel_leave", "channel_topic", "channel_purpose", "bot_message", "channel_name")


def talks_of(rows: Sequence[Row], report: Report) -> list[Talk] | None:
    """The talks of a file's records, or of the one object that it is; None where it is no such export."""
    first = rows[0].value if rows else None
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("mapping"), dict):
        return [talk for row in rows for talk in _chatgpt(row, report)]
    if isinstance(first.get("chat_messages"), list):
        return [talk for row in rows for talk in _claude(row, report)]
    if len(rows) == 1 and _is_telegram(first):
        return _telegram(first, report)
    if first.get("type") == "message" and "ts" in first:
        return _slack(rows, report)
    return None


def account_names(value: object) -> dict[str, str]:
    """The people of a Slack export's users.json, by their ids; {} for any other value."""
    names = {}
    for each in value if isinstance(value, list) else ():
        profile = each.get("profile") if isinstance(each, dict) else None
        if not isinstance(profile, dict) or not isinstance(each.get("id"), str):
            return {}
        shown = (profile.get("real_name"), profile.get("display_name"), each.get("name"))
        names[each["id"]] = next((name for name in shown if isinstance(name, str) and name.strip()), each["id"])
    return names


def _said(who: object, text: object, line: int, at: datetime | None, report: Report) -> Iterator[Said]:
    """A message, where it has words and somebody wrote it."""
    if not isinstance(who, str) or not who.strip():
        return
    if isinstance(text, str) and text.strip():
        yield Said(" ".join(who.split()), text, line, at)
    else:
        report.left[WORDLESS] += 1


def _dicts(value: object) -> list[Record]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _chatgpt(row: Row, report: Report) -> Iterator[Talk]:
    record = row.value if isinstance(row.value, dict) else {}
    nodes, branch, seen = record.get("mapping"), list[Record](), set[str]()
    if not isinstance(nodes, dict):
        return
    at = record.get("current_node")
    if not isinstance(at, str) or at not in nodes:
        at = next(reversed(nodes), None)
    while isinstance(at, str) and at not in seen and isinstance(nodes.get(at), dict):
        seen.add(at)
        branch.append(nodes[at])
        at = nodes[at].get("parent")
    said = list[Said]()
    for node in reversed(branch):
        message = node.get("message")
        if not isinstance(message, dict):
            continue
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, dict) else None
        parts = content.get("parts") if isinstance(content, dict) else None
        if role in ("user", "assistant") and isinstance(parts, list):
            text = "\n".join(part for part in parts if isinstance(part, str))
            who = YOU if role == "user" else "ChatGPT"
            said += _said(who, text, row.line, _moment(message.get("create_time")), report)
    if said:
        yield Talk(tuple(said), YOU)


def _claude(row: Row, report: Report) -> Iterator[Talk]:
    said = list[Said]()
    for each in _dicts(row.value.get("chat_messages") if isinstance(row.value, dict) else None):
        parts = [part.get("text") for part in _dicts(each.get("content")) if part.get("type") == "text"]
        text = each.get("text") or "\n".join(part for part in parts if isinstance(part, str))
        who = {"human": YOU, "assistant": "Claude"}.get(str(each.get("sender")))
        said += _said(who, text, row.line, _moment(each.get("created_at")), report)
    if said:
        yield Talk(tuple(said), YOU)


def _is_telegram(value: Record) -> bool:
    chats = value.get("chats")
    if isinstance(chats, dict) and isinstance(chats.get("list"), list):
        return True
    return any({"id", "type", "date"} <= each.keys() for each in _dicts(value.get("messages"))[:1])


def _telegram(value: Record, report: Report) -> list[Talk]:
    chats = value.get("chats")
    every = _dicts(chats.get("list")) if isinstance(chats, dict) else [value]
    about = value.get("personal_information")
    own = f"user{about.get('user_id')}" if isinstance(about, dict) else ""
    talks = list[Talk]()
    for chat in every:
        messages = [each for each in _dicts(chat.get("messages")) if each.get("type") == "message"]
        said = list[Said]()
        for each in messages:
            said += _said(each.get("from"), _telegram_text(each.get("text")), 1, _moment(each.get("date")), report)
        if not said:
            continue
        me = next((str(each["from"]) for each in messages if own and each.get("from_id") == own), "")
        others = {one.who for one in said} - {str(chat.get("name"))}
        if not me and chat.get("type") == "personal_chat" and len(others) == 1:
            me = next(iter(others))  # a chat of two is called by the other one
        talks.append(Talk(tuple(said), me))
    return talks


def _telegram_text(text: object) -> str:
    """A text, or its pieces, of which links and names are objects."""
    pieces = text if isinstance(text, list) else [text]
    found = [piece.get("text") if isinstance(piece, dict) else piece for piece in pieces]
    return "".join(piece for piece in found if isinstance(piece, str))


def _slack(rows: Sequence[Row], report: Report) -> list[Talk]:
    said = list[Said]()
    for row in rows:
        each = row.value if isinstance(row.value, dict) else {}
        profile, account = each.get("user_profile"), each.get("user")
        if each.get("type") != "message" or each.get("subtype") in _SLACK_EVENTS or not isinstance(account, str):
            continue
        named = profile.get("real_name") if isinstance(profile, dict) else None
        who = report.names.get(account) or named or account
        said += _said(who, _slack_text(each.get("text"), report), row.line, _moment(each.get("ts")), report)
    return [Talk(tuple(said))] if said else []


def _slack_text(text: object, report: Report) -> str:
    """A text without Slack's marks: <@U1> is a name, <https://…|words> the words."""

    def shown(match: re.Match[str]) -> str:
        target, words = match.groups()
        if target.startswith("@"):
            return "@" + (words or report.names.get(target[1:], target[1:]))
        return words or target.lstrip("#!")

    return html.unescape(_SLACK_LINK.sub(shown, text)) if isinstance(text, str) else ""


def _moment(value: Any) -> datetime | None:
    """A time as such exports write it: seconds since 1970, as a number or a text, or ISO 8601."""
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            at = datetime.fromisoformat(value)
            return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
        return datetime.fromtimestamp(float(value), UTC).replace(tzinfo=None)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
