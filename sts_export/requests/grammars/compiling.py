"""Grammars compiled for one tokenizer, by llguidance.

Its own limits hold against grammars that explode: 2000 items in a row of the parser, 500,000 symbols, and fuel of the lexer for
the grammar and for every token (``LLParserLimits``).  A text that has to follow is looked at whole before each of its tokens,
so that its length is limited here, too, where it is the first one, and so are the lexer's states.  Beyond a limit a grammar is
refused, when it is compiled or, where only some texts lead there, at a token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import RequestError, about
from sts_export.requests.grammars.exact import check_numbers
from sts_export.requests.grammars.grammar import Grammar

INSTALL = "pip install 'sts-export[serve]'"
_END = "<|end of the grammar|>"
_MOST_STATES = 50_000  # of 250,000; 1 to 2 kB each
_MOST_FORCED = 16 * 1024  # bytes; of 10,000, a token takes up to 30 ms
# A space, or a line break with its indentation, at most once between two tokens of JSON: an answer cannot go on with spaces for
# ever.  What a schema says of it under "x-guidance" is overridden.
_JSON = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r" |\n[ \t]{0,16}",
    "whitespace_flexible": True,
    "coerce_one_of": False,
    "lenient": False,
}


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar whose first tokens are known.  Several answers may begin from one.

    Args:
        matcher: llguidance's, at the beginning; :meth:`begun` copies it.
        vocab_size: number of logits.
        ends: ids that end an answer, below ``vocab_size``.
        nominal: the id by which llguidance knows the end of the grammar; no token of the model's.
    """

    matcher: Any
    vocab_size: int
    ends: tuple[int, ...]
    nominal: int

    def begun(self) -> GrammarState:
        """The state of one answer, before its first token.

        Raises:
            RequestError: no text is allowed, or a limit was met.
        """
        return GrammarState(self)


class GrammarState:
    """How far one answer is in its grammar.  One thread at a time.

    Attributes:
        allowed: [vocab] bool; tokens that may come next.  End tokens are among them where the grammar may end; other special
            tokens never.  Where only one text can follow, it is the tokenizer's own first token of that text.
        is_complete: only an end can follow.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self.allowed, self.is_complete = self._next()

    def append(self, token: int) -> None:
        """Tell which allowed token was chosen; nothing may follow an end token.

        Raises:
            RequestError: the grammar met a limit.
        """
        if token in self._grammar.ends:
            return
        self._matcher.consume_token(token)
        self.allowed, self.is_complete = self._next()

    def _next(self) -> tuple[NDArray[np.bool_], bool]:
        grammar, matcher = self._grammar, self._matcher
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").view(np.bool_)
        allowed = np.zeros(grammar.vocab_size, np.bool_)
        known = min(len(bits), len(allowed))
        allowed[:known] = bits[:known]
        if grammar.nominal < len(allowed):
            allowed[grammar.nominal] = False
        allowed[list(grammar.ends)] = False
        may_end = matcher.is_accepting()
        may_go_on = bool(allowed.any())
        if not (may_end or may_go_on):
            raise RequestError(_refusal(matcher.get_error()))
        allowed[list(grammar.ends)] = may_end
        return allowed, not may_go_on


class GrammarCompiler:
    """Compiles for one model.  Threads may share it.

    Args:
        tokenizer: ``tokenizers.Tokenizer``.
        vocab_size: number of logits.
        end_tokens: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_tokens: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ends = tuple(token for token in end_tokens if token < vocab_size)
        self._made: tuple[Any, int] | None = None
        self._lock = threading.Lock()

    @about("grammar")
    def of_request(self, grammar: Grammar | None, *, ignore_eos: bool) -> CompiledGrammar | None:
        """:meth:`compile`, where there is something to compile.

        Raises:
            RequestError: a grammar together with ``ignore_eos``; or as for :meth:`compile`.
        """
        if grammar is None:
            return None
        if ignore_eos:
            raise RequestError("a grammar says where the answer ends, and ignore_eos that it does not; leave one of them out")
        return self.compile(grammar)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Some milliseconds; the first time seconds for a large vocabulary.

        Raises:
            RequestError: not a grammar, or one that llguidance does not know, that allows nothing, or that is too complex;
                llguidance is not installed, or does not know the tokenizer's kind.
        """
        if not isinstance(grammar, Grammar):
            raise RequestError(f"grammar is a Grammar, not {type(grammar).__name__}; make one with Grammar.json_schema")
        library = _library()
        tokenizer, nominal = self._for_grammars(library)
        make, text = library.LLMatcher, grammar.text
        if grammar.kind == "regex":
            source = make.grammar_from_regex(text)
        else:
            with suppress(ValueError, RecursionError):  # no JSON: llguidance tells what is wrong
                check_numbers(json.loads(text))
            try:
                source = make.grammar_from_json_schema(text, overrides=_JSON)
            except ValueError as error:  # nested too deeply for its reader, such as
                raise RequestError(_refusal(str(error))) from None
        limits = library.LLParserLimits(max_lexer_states=_MOST_STATES, verbose_errors=False)
        matcher = make(tokenizer, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(_refusal(matcher.get_error()))
        if (forced := len(matcher.deep_copy().compute_ff_bytes())) > _MOST_FORCED:
            raise RequestError(_refusal(f"it begins with {forced} bytes that are always the same; {_MOST_FORCED} are accepted"))
        compiled = CompiledGrammar(matcher, self._vocab_size, self._ends, nominal)
        if compiled.begun().is_complete:  # which refuses what allows no first token
            raise RequestError("the grammar of the answer allows no text; correct it")
        return compiled

    def _for_grammars(self, library: Any) -> tuple[Any, int]:
        """llguidance's tokenizer, made once, and the id of an end that is no token of the model's."""
        with self._lock:
            if self._made is None:
                from tokenizers import AddedToken, Tokenizer

                copy = Tokenizer.from_str(self._tokenizer.to_str())
                copy.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
                nominal: Any = copy.token_to_id(_END)
                try:
                    self._made = library.LLTokenizer(copy.to_str(), eos_token=nominal), nominal
                except ValueError as error:
                    raise RequestError(
                        f"grammars are not possible with this model's tokenizer ({_one_line(str(error))}); ask without one"
                    ) from None
            return self._made


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise RequestError(f"JSON schemas and other grammars need llguidance: {INSTALL}") from None
    return llguidance


def _refusal(error: str) -> str:
    why = "no text fits it" if not error or error.startswith("NoExtension") else _one_line(error)
    return f"the grammar of the answer cannot be used ({why}); simplify or correct it"


def _one_line(error: str) -> str:
    return " ".join(error.replace("<non-verbose/>", "").split())[:200]
