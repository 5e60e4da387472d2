"""What a person told: entries in one SQLite database, with an inverted index of their words.

An entry is a question with its reply, or a note. It is searched as *passages*: a pair is one, a note has one for each
few sentences. The database lives in the process's memory; `to_bytes` gives what a part's file holds, so the part's file
is what another process sees, the old or the new, whole. It does not know the base model's tokens, beyond keeping them.
Test: pytest tests/memory/test_store.py
"""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from sideplug.contract.errors import InputError, PluginError
from sideplug.memory.days import in_words, is_day
from sideplug.memory.words import sentences, stem, words

FORMAT = 1
MAX_CHARACTERS = 20_000  # of a question, a reply or a note
MAX_NUMBER = (1 << 63) - 1  # of an entry, as SQLite has numbers
PASSAGE = 360  # characters of a note that are searched together, at most, where sentences allow
IN_MEMORY = ":memory:"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    question TEXT NOT NULL, reply TEXT NOT NULL, source TEXT NOT NULL, told TEXT NOT NULL, date TEXT NOT NULL,
    replaced_by INTEGER
);
CREATE INDEX entries_question ON entries (question);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL, asked TEXT NOT NULL, said TEXT NOT NULL,
    vector BLOB, base TEXT NOT NULL DEFAULT '', ids BLOB
);
CREATE INDEX passages_number ON passages (number);
CREATE VIRTUAL TABLE terms USING fts5 (stems, tokenize = "unicode61 remove_diacritics 0 categories 'L* N* M*'");
CREATE TABLE frequencies (stem TEXT PRIMARY KEY, passages INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """What was told once.

    question: "" for a note, whose text is `reply`. source: where it came from ("said", "notes/cats.md", …). told: when,
    in ISO 8601, UTC. date: the day that it is about, where it was given. replaced_by: the entry that holds instead; 0
    where this one holds. number: 0 before it is stored.
    """

    question: str
    reply: str
    source: str = ""
    date: str = ""
    told: str = ""
    replaced_by: int = 0
    number: int = 0

    @property
    def is_note(self) -> bool:
        """Return whether it is a note, not a question with its reply."""
        return not self.question

    @property
    def title(self) -> str:
        """Return what names it in a line: its question, or how the note begins."""
        return self.question or next(iter(sentences(self.reply)), self.reply)

    def check(self) -> Entry:
        """Return it, tidied. Raises InputError for one that can't be kept."""
        question, reply, source, date = (_tidy(each) for each in (self.question, self.reply, self.source, self.date))
        tidy = replace(self, question=question, reply=reply, source=source, date=date)
        if not tidy.reply:
            raise InputError("an entry must have a reply, or a note a text: this one is empty")
        if tidy.date and not is_day(tidy.date):
            raise InputError(f"a date must be a day, YYYY-MM-DD, got {tidy.date[:40]!r}")
        for text in (tidy.question, tidy.reply):
            if len(text) > MAX_CHARACTERS:
                raise InputError(f"an entry may have {MAX_CHARACTERS:,} characters, this one has {len(text):,}")
        return tidy

    def passages(self) -> list[tuple[str, str]]:
        """Return (what is asked, what is said) of each passage; a note's is asked about by its own words."""
        if not self.is_note:
            return [(self.question, self.reply)]
        passages, some = [], list[str]()
        for sentence in sentences(self.reply):
            if some and sum(map(len, some)) + len(sentence) > PASSAGE:
                passages.append(some)
                some = []
            some.append(sentence)
        return [("", "\n".join(each)) for each in [*passages, some] if each]


@dataclass(frozen=True)
class Passage:
    """A passage as a search finds it.

    asked: "" for a note's. said: a reply, or a note's sentences, one a line. ids: the tokens of what may be said, by
    the base model, −1 behind each; None where they were not recorded yet. day: the day that it is about, in words.
    """

    id: int
    number: int
    asked: str
    said: str
    ids: np.ndarray | None = None
    day: str = ""

    @property
    def about(self) -> str:
        """What it is about beside what it says: its question, or a note's day."""
        return self.asked or self.day

    @property
    def parts(self) -> list[str]:
        """What may answer: its reply, or each of its sentences."""
        return [self.said] if self.asked else self.said.split("\n")

    @property
    def texts(self) -> list[str]:
        """What may be said: its parts, then the whole where there are several."""
        parts = self.parts
        return [*parts, " ".join(parts)] if len(parts) > 1 else parts

    def ids_of(self, text: int) -> list[int]:
        """The tokens of a text, or behind the texts of what asks whether each is meant; [] where there are none."""
        if self.ids is None:
            return []
        ends = np.flatnonzero(self.ids < 0)
        if text >= len(ends):
            return []
        ids: list[int] = self.ids[(ends[text - 1] + 1 if text else 0) : ends[text]].tolist()
        return ids


def _tidy(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "").strip()


def _stems(text: str) -> list[str]:
    return [stem(word) for word in words(text)]


class Store:
    """The entries of one memory. Its methods may be called from several threads, one at a time."""

    def __init__(self, data: bytes | None = None, name: str = "the memory") -> None:
        """Holds what `to_bytes` gave; None: nothing. `name` names it in errors. Raises PluginError."""
        self._db, self._name = sqlite3.connect(IN_MEMORY, isolation_level=None, check_same_thread=False), name
        weakref.finalize(self, self._db.close)
        self._rolled_back = 0
        with self._errors():
            if data is not None:
                self._check_whole(data)
                self._db.deserialize(data)
            self._ready()

    def _check_whole(self, data: bytes) -> None:
        """Raises PluginError for bytes that are no database, or not all of its pages: SQLite reads on without some."""
        size = int.from_bytes(data[16:18], "big")  # 1: 65,536
        pages = int.from_bytes(data[28:32], "big")
        if not data.startswith(b"SQLite format 3\0") or len(data) != (65_536 if size == 1 else size) * pages:
            raise PluginError(f"{self._name} is damaged: it is not whole")

    def _ready(self) -> None:
        self._db.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        with self.change():
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _TABLES.strip().split(";\n"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
            found = self._db.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if found is None or found[0] != str(FORMAT):
            got = found[0] if found else "none"
            raise PluginError(f"{self._name} has format {got}, this version reads {FORMAT}")

    def to_bytes(self) -> bytes:
        """Return the whole memory."""
        with self._errors():
            return bytes(self._db.serialize())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, MemoryError, UnicodeDecodeError) as error:  # a damaged file may lead to any of these
            raise PluginError(f"{self._name} is damaged: {error}") from error

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """A transaction: all that happens in the block, or nothing of it. Raises PluginError."""
        if self._db.in_transaction:
            yield
            return
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                self._rolled_back += 1
                raise

    # Entries

    def add(self, entries: Iterable[Entry]) -> list[int]:
        """Keep entries, all or none of them; return their numbers. One that is there already keeps its number.

        The same words about another day are another entry; about a day where none was known they tell the day.
        Raises InputError for one that can't be kept.
        """
        checked = [entry.check() for entry in entries]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        numbers = []
        with self.change():
            for entry in checked:
                same = self._db.execute(
                    "SELECT number, date FROM entries WHERE question = ? AND reply = ? AND replaced_by IS NULL "
                    "AND (date IN (?, '') OR ? = '') ORDER BY date = ? DESC",
                    (entry.question, entry.reply, entry.date, entry.date, entry.date),
                ).fetchone()
                if same:
                    number, date = int(same[0]), str(same[1])
                    if entry.date != date and entry.date:
                        self._about(number, entry)
                    numbers.append(number)
                    continue
                row = (entry.question, entry.reply, entry.source, entry.told or now, entry.date)
                cursor = self._db.execute(
                    "INSERT INTO entries (question, reply, source, told, date) VALUES (?, ?, ?, ?, ?)", row
                )
                number = int(cursor.lastrowid or 0)
                self._add_passages(number, entry)
                numbers.append(number)
        return numbers

    def _add_passages(self, number: int, entry: Entry) -> None:
        for asked, said in entry.passages():
            cursor = self._db.execute(
                "INSERT INTO passages (number, asked, said) VALUES (?, ?, ?)", (number, asked, said)
            )
            stems = _stems(f"{asked}\n{said}\n{in_words(entry.date)}")
            self._db.execute("INSERT INTO terms (rowid, stems) VALUES (?, ?)", (cursor.lastrowid, " ".join(stems)))
            self._db.executemany(
                "INSERT INTO frequencies VALUES (?, 1) ON CONFLICT (stem) DO UPDATE SET passages = passages + 1",
                [(each,) for each in set(stems)],
            )

    def _about(self, number: int, entry: Entry) -> None:
        """An entry that holds is about this day; its passages are found by the day's words too."""
        self._drop_passages(number)
        self._db.execute("UPDATE entries SET date = ? WHERE number = ?", (entry.date, number))
        self._add_passages(number, entry)

    def edit(self, number: int, question: str, reply: str) -> None:
        """Put other words in an entry's place; it keeps its number and source. Raises InputError."""
        entry = replace(self.entry(number), question=question, reply=reply).check()
        with self.change():
            self._drop_passages(number)
            self._db.execute(
                "UPDATE entries SET question = ?, reply = ? WHERE number = ?", (entry.question, entry.reply, number)
            )
            if not entry.replaced_by:
                self._add_passages(number, entry)
        self._scrub()

    def replace(self, number: int, by: int) -> None:
        """Entry `by` holds instead of `number`, which stays to be seen, and is not found any more."""
        with self.change():
            self._drop_passages(number)
            self._db.execute("UPDATE entries SET replaced_by = ? WHERE number = ?", (by, number))

    def restore(self, number: int) -> None:
        """An entry that was replaced holds again."""
        entry = self.entry(number)
        with self.change():
            self._drop_passages(number)
            self._db.execute("UPDATE entries SET replaced_by = NULL WHERE number = ?", (number,))
            self._add_passages(number, entry)

    def forget(self, numbers: Sequence[int]) -> int:
        """Forget entries completely: words, index, vectors and tokens are overwritten. Return how many there were.

        What one of them had replaced holds again.
        """
        count = 0
        with self.change():
            for number in numbers:
                if not 0 < number <= MAX_NUMBER:
                    continue
                self._drop_passages(number)
                by = self._db.execute("SELECT replaced_by FROM entries WHERE number = ?", (number,)).fetchone()
                by = by and by[0]
                count += self._db.execute("DELETE FROM entries WHERE number = ?", (number,)).rowcount
                replaced = self._db.execute("SELECT number FROM entries WHERE replaced_by = ?", (number,)).fetchall()
                for (older,) in replaced:
                    if by:
                        self._db.execute("UPDATE entries SET replaced_by = ? WHERE number = ?", (by, older))
                    else:
                        self.restore(older)
        self._scrub()
        return count

    def _scrub(self) -> None:
        """Overwrite what was deleted, in the index's old segments too."""
        if self._db.in_transaction:
            return  # whoever began it scrubs
        with self._errors():
            self._db.execute("INSERT INTO terms (terms) VALUES ('optimize')")
            self._db.execute("VACUUM")

    def _drop_passages(self, number: int) -> None:
        rows = self._db.execute(
            "SELECT id, asked, said, date FROM passages JOIN entries USING (number) WHERE number = ?", (number,)
        ).fetchall()
        for passage, asked, said, date in rows:
            stems = [(each,) for each in set(_stems(f"{asked}\n{said}\n{in_words(date)}"))]
            self._db.executemany("UPDATE frequencies SET passages = passages - 1 WHERE stem = ?", stems)
            self._db.executemany("DELETE FROM frequencies WHERE stem = ? AND passages = 0", stems)
            self._db.execute("DELETE FROM terms WHERE rowid = ?", (passage,))
        self._db.execute("DELETE FROM passages WHERE number = ?", (number,))

    def entry(self, number: int) -> Entry:
        """Return the entry of this number. Raises InputError where there is none."""
        for entry in self._entries("WHERE number = ?", (number,)) if 0 < number <= MAX_NUMBER else ():
            return entry
        raise InputError(f"the memory has no entry {number}: sideplug memory list shows them")

    def entries(self) -> Iterator[Entry]:
        """Return all entries, in the order in which they were told, replaced ones too."""
        return self._entries("ORDER BY number")

    def _entries(self, where: str, values: tuple[object, ...] = ()) -> Iterator[Entry]:
        with self._errors():
            rows = self._db.execute(
                "SELECT question, reply, source, date, told, coalesce(replaced_by, 0), number FROM entries " + where,
                values,
            )
            for row in rows:
                yield Entry(*row)

    def __len__(self) -> int:
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM entries WHERE replaced_by IS NULL").fetchone()[0])

    # Search

    @property
    def version(self) -> tuple[int, int]:
        """Return what changes whenever the memory changes, or a change of it is taken back."""
        return self._db.total_changes, self._rolled_back

    def passage_count(self) -> int:
        """Return the number of passages that are searched."""
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM passages").fetchone()[0])

    def frequency(self, stems: Iterable[str]) -> dict[str, int]:
        """Return in how many passages each of these stems is; those in none are left out."""
        found = {}
        with self._errors():
            for each in set(stems):
                row = self._db.execute("SELECT passages FROM frequencies WHERE stem = ?", (each,)).fetchone()
                if row:
                    found[each] = int(row[0])
        return found

    def by_words(self, stems: Sequence[str], count: int) -> list[int]:
        """Return the passages that share these stems, or stems side by side, best first by BM25."""
        if not stems:
            return []
        query = " OR ".join(f'"{each}"' for each in stems)
        with self._errors():
            rows = self._db.execute("SELECT rowid FROM terms WHERE terms MATCH ? ORDER BY rank LIMIT ?", (query, count))
            return [int(row[0]) for row in rows]

    def passages(self, ids: Iterable[int], base: str = "") -> list[Passage]:
        """Return these passages, in this order, with their tokens of the base model `base` where it has them."""
        found = []
        with self._errors():
            for each in ids:
                row = self._db.execute(
                    "SELECT id, number, asked, said, base, ids, date FROM passages JOIN entries USING (number) "
                    "WHERE id = ?",
                    (each,),
                ).fetchone()
                if row:
                    tokens = np.frombuffer(row[5], np.int32) if row[5] and row[4] == base else None
                    found.append(Passage(row[0], row[1], row[2], row[3], tokens, in_words(row[6])))
        return found

    # What is derived: vectors, and the base's tokens

    def vectors(self, after: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) int64 and the vectors (N, E) int8 of the passages behind id `after` that have one."""
        with self._errors():
            rows = self._db.execute(
                "SELECT id, vector FROM passages WHERE id > ? AND vector IS NOT NULL ORDER BY id", (after,)
            ).fetchall()
        ids = np.array([row[0] for row in rows], np.int64)
        return ids, np.frombuffer(b"".join(row[1] for row in rows), np.int8).reshape(len(rows), -1 if rows else 0)

    def ids(self) -> np.ndarray:
        """Return the ids of all passages, (N,) int64, ascending."""
        with self._errors():
            return np.array([row[0] for row in self._db.execute("SELECT id FROM passages ORDER BY id")], np.int64)

    def without_vector(self, after: int, count: int) -> list[Passage]:
        """Return up to `count` passages behind id `after` whose vector is missing."""
        with self._errors():
            rows = self._db.execute(
                "SELECT id FROM passages WHERE id > ? AND vector IS NULL ORDER BY id LIMIT ?", (after, count)
            )
            return self.passages([row[0] for row in rows.fetchall()])

    def set_vectors(self, vectors: dict[int, np.ndarray]) -> None:
        """Keep the vectors (E,) int8 of passages."""
        with self.change():
            rows = [(vector.astype(np.int8).tobytes(), each) for each, vector in vectors.items()]
            self._db.executemany("UPDATE passages SET vector = ? WHERE id = ?", rows)

    def drop_vectors(self) -> None:
        """Forget all vectors: they were another encoder's."""
        with self.change():
            self._db.execute("UPDATE passages SET vector = NULL")

    def unrecorded(self, base: str) -> list[Passage]:
        """Return the passages whose tokens of this base model are missing."""
        with self._errors():
            rows = self._db.execute("SELECT id FROM passages WHERE base != ? ORDER BY id", (base,))
            return self.passages([row[0] for row in rows.fetchall()])

    def missing_vectors(self) -> int:
        """Return how many passages have no vector."""
        with self._errors():
            return int(self._db.execute("SELECT count(*) FROM passages WHERE vector IS NULL").fetchone()[0])

    def ids_by_passage(self, base: str) -> dict[int, np.ndarray]:
        """Return the tokens that were recorded of this base, by passage."""
        with self._errors():
            rows = self._db.execute("SELECT id, ids FROM passages WHERE base = ?", (base,))
            return {int(row[0]): np.frombuffer(row[1], np.int32) for row in rows}

    def ids_of(self, number: int, base: str) -> list[int]:
        """Return the tokens of an entry's reply that were recorded of this base; [] for a note, or where none were."""
        with self._errors():
            row = self._db.execute(
                "SELECT ids FROM passages WHERE number = ? AND base = ? AND asked != ''", (number, base)
            ).fetchone()
        return np.frombuffer(row[0], np.int32)[:-1].tolist() if row and row[0] else []  # type: ignore[no-any-return]

    def set_ids(self, base: str, ids: dict[int, np.ndarray]) -> None:
        """Keep the tokens of passages' replies, by the base model with this fingerprint."""
        with self.change():
            rows = [(base, value.astype(np.int32).tobytes(), each) for each, value in ids.items()]
            self._db.executemany("UPDATE passages SET base = ?, ids = ? WHERE id = ?", rows)

    def forget_ids(self) -> None:
        """Forget all tokens: the base reads all passages again."""
        with self.change():
            self._db.execute("UPDATE passages SET base = '', ids = NULL")

    def own_ids(self, base: str, text: str) -> list[int]:
        """Return the tokens of a sentence of sideplug's own by this base model; [] where they were not recorded."""
        recorded, _, ids = self.setting(f"said: {text}").partition(" ")
        return [int(each) for each in ids.split()] if recorded == base else []

    def set_own_ids(self, base: str, text: str, ids: Sequence[int]) -> None:
        """Keep the tokens of a sentence of sideplug's own."""
        self.set_setting(f"said: {text}", " ".join([base, *map(str, ids)]))

    def setting(self, name: str) -> str:
        """Return a setting of the memory, "" where it has none."""
        with self._errors():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return str(row[0]) if row else ""

    def set_setting(self, name: str, value: str) -> None:
        """Keep a setting of the memory."""
        with self.change():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
