"""Answers in the form in which VQA benchmarks compare them.

As in the official scorer of VQA (``PythonEvaluationTools/vqaEvaluation/vqaEval.py`` of 2021) and in what LLaVA passes answers
through first (``EvalAIAnswerProcessor`` of MMF's m4c_evaluator), oddities included: figures are to be those that are published.
"""

from __future__ import annotations

import re

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # re.UNICODE, which the scorers give in the place of a count
_COMMA = re.compile(r"\d,\d")
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# Spelled with one apostrophe too few -> as it should be; and one that the published table has the other way round.
_MENDED = {short: word for word in _CONTRACTIONS.split() for short in _without_one_apostrophe(word)}
_MENDED["somebody'd"] = "somebodyd"


def official(answer: str) -> str:
    """``processPunctuation`` and ``processDigitArticle`` of the VQA scorer."""
    return _words(_punctuation(one_line(answer)))


def one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def evalai(answer: str) -> str:
    """MMF's ``EvalAIAnswerProcessor``: commas and question marks go first, and so does the tie of a genitive."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(one_line(text)))


def _punctuation(text: str) -> str:
    """Marks beside a space, and all marks where a number has a comma, go without a trace; others become a space."""
    number = _COMMA.search(text) is not None
    changed = text
    for mark in _PUNCTUATION:
        goes = number or f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", changed, count=_MOST_PERIODS)


def _words(text: str) -> str:
    """Lower case, numbers as digits, no articles, contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)
