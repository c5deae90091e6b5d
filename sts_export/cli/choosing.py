"""Options of `run` that say how the next token is chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sts_export.errors import RequestError

if TYPE_CHECKING:
    from sts_export.generation.pipeline import Pipeline
    from sts_export.requests.logits_config import LogitsConfig
    from sts_export.requests.sampling_config import SamplingConfig

_SAMPLING = ("temperature", "top_k", "top_p", "seed", "min_p")
_LOGITS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "min_new_tokens")


def add_choice(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--sample", action="store_true", help="as the checkpoint wants it; the options below go before that")
    sampling.add_argument("--temperature", type=float, help="0 is greedy (default)")
    sampling.add_argument("--top-k", type=int, help="0 is off (default)")
    sampling.add_argument("--top-p", type=float, help="1 is off (default)")
    sampling.add_argument("--min-p", type=float, help="0 is off (default)")
    sampling.add_argument("--seed", type=int)
    logits = parser.add_argument_group("penalties and exclusions", "The default is what the checkpoint's settings say.")
    logits.add_argument("--repetition-penalty", type=float, help="of tokens in prompt and answer; 1 is off")
    logits.add_argument("--presence-penalty", type=float, help="of generated tokens, -2 to 2; 0 is off")
    logits.add_argument("--frequency-penalty", type=float, help="of generated tokens for each time, -2 to 2; 0 is off")
    logits.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="no N tokens twice in a row; 0 is off")
    logits.add_argument("--min-new-tokens", type=int, metavar="N", help="no end before N tokens; 0 is off")
    logits.add_argument("--logit-bias", action="append", metavar="ID=VALUE", help="added to a token's logit (may be repeated)")
    logits.add_argument("--suppress-token", action="append", type=int, metavar="ID", help="never generated (may be repeated)")


def plain_sampling(args: argparse.Namespace) -> SamplingConfig | None:
    """Greedy, or what the options say; None with --sample, for which the checkpoint is asked.

    Raises:
        RequestError: a value out of its range.
    """
    from sts_export.requests.sampling_config import SamplingConfig

    given = SamplingConfig(**{name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None})
    return None if args.sample else given


def checkpoint_sampling(args: argparse.Namespace, pipeline: Pipeline) -> SamplingConfig:
    """What the checkpoint says, and the options before it."""
    return pipeline.sampling_defaults(**{name: getattr(args, name) for name in _SAMPLING})


def logits_config(args: argparse.Namespace) -> LogitsConfig:
    """Penalties and exclusions that the options name.

    Raises:
        RequestError: a value out of its range.
    """
    from sts_export.requests.logits_config import LogitsConfig

    bias = None if args.logit_bias is None else dict(map(_parse_bias, args.logit_bias))
    own = {name: getattr(args, name) for name in _LOGITS}
    return LogitsConfig(**own, logit_bias=bias, suppress_tokens=args.suppress_token)


def _parse_bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise RequestError(f"--logit-bias {text!r} is not a token id and a number: give ID=VALUE such as 13=-2.5") from None
