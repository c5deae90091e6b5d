"""Answers on disk: whatever ends a process, what was answered is there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sts_export.errors import OutputError, RequestError
from sts_export.evaluation.journal import Answer, Journal

IDENTITY = {"task": "demo", "budget": "64"}
ANSWERS = [Answer("1", "a red cat", 3, 64.0, 12.5), Answer("2", "zwölf\n", 1, 64.0, 11.0), Answer("3", "", 1, 63.5, 10.0)]


def written(file: Path, answers: list[Answer] = ANSWERS) -> Path:
    journal = Journal(file, IDENTITY)
    for answer in answers:
        journal.add(answer)
    journal.close()
    return file


def test_answers_come_back(tmp_path: Path) -> None:
    file = written(tmp_path / "new" / "a.jsonl")
    assert list(Journal(file, IDENTITY).answers.values()) == ANSWERS
    assert len(file.read_text().splitlines()) == 4


def test_nothing_is_made_before_the_first_answer(tmp_path: Path) -> None:
    Journal(tmp_path / "new" / "a.jsonl", IDENTITY).close()
    assert list(tmp_path.iterdir()) == []


def test_each_answer_is_there_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl", IDENTITY)
    for count, answer in enumerate(ANSWERS, start=1):
        journal.add(answer)
        assert len(Journal(tmp_path / "a.jsonl", IDENTITY).answers) == count


def test_it_goes_on_wherever_it_was_cut_off(tmp_path: Path) -> None:
    """Killed at any byte: whole lines stay, the torn one goes, and the file is at the end as if nothing had happened."""
    whole = written(tmp_path / "whole.jsonl").read_bytes()
    file = tmp_path / "a.jsonl"
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        journal = Journal(file, IDENTITY)
        assert len(journal.answers) == max(0, whole[:cut].count(b"\n") - 1)
        for answer in ANSWERS:
            if answer.id not in journal.answers:
                journal.add(answer)
        journal.close()
        assert file.read_bytes() == whole


def test_a_long_torn_line_leaves_nothing_behind_a_short_one(tmp_path: Path) -> None:
    """Other answers may follow than the one that was cut off, and shorter ones."""
    file = written(tmp_path / "a.jsonl", ANSWERS[:1])
    with file.open("ab") as stream:
        stream.write(b'{"id": "' + b"x" * 1000)
    journal = Journal(file, IDENTITY)
    journal.add(ANSWERS[1])
    journal.close()
    assert file.read_bytes() == written(tmp_path / "b.jsonl", ANSWERS[:2]).read_bytes()


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl")
    before = file.read_bytes()
    with pytest.raises(RequestError, match=r'a\.jsonl holds answers of another evaluation: its budget is "64", not "32"'):
        Journal(file, {**IDENTITY, "budget": "32"})
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", [b"no json", b"3", b'{"id": "2"}', b'{"id": "2", "other": 1}', b"\xff", b""])
@pytest.mark.parametrize("place", [1, 3])
def test_damage_in_the_middle_is_named(tmp_path: Path, line: bytes, place: int) -> None:
    file = written(tmp_path / "a.jsonl")
    lines = file.read_bytes().split(b"\n")
    lines[place - 1] = line
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(RequestError, match=rf"a\.jsonl, line {place}: no answer; delete the file, or choose another --output"):
        Journal(file, IDENTITY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a device without room, is not here")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    journal = Journal(file, IDENTITY)
    file.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"the disk of .* is full; free some space; the answers so far are kept"):
        journal.add(ANSWERS[0])
    assert journal.answers == {}
    journal.close()


def test_a_disk_that_fills_up_keeps_the_earlier_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is cut off in the middle, as a file system does."""
    file = written(tmp_path / "a.jsonl", ANSWERS[:2])
    journal = Journal(file, IDENTITY)
    journal.add(ANSWERS[2])

    class Full:
        def __init__(self, stream: object) -> None:
            self.stream, self.room = stream, 10

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = self.stream.write(data[: self.room])  # type: ignore[attr-defined]
            self.room -= count
            return int(count)

        def close(self) -> None:
            self.stream.close()  # type: ignore[attr-defined]

    monkeypatch.setattr(journal, "_stream", Full(journal._stream))
    with pytest.raises(OutputError, match="is full"):
        journal.add(Answer("4", "much text", 2, 64.0, 1.0))
    journal.close()
    assert list(Journal(file, IDENTITY).answers.values()) == ANSWERS


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot use .* \(Is a directory\)"):
        Journal(tmp_path, IDENTITY)


def test_without_a_file_answers_stay_in_memory() -> None:
    journal = Journal(None, IDENTITY)
    journal.add(ANSWERS[0])
    assert journal.answers == {"1": ANSWERS[0]}
