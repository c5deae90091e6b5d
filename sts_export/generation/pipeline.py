"""Ask a bundle about pictures.

vlm = Pipeline("llava-1.5-7b-b64")
print(vlm.generate("What is on the table?", images="cat.jpg").text)
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import open_bundle
from sts_export.errors import BackendError, RequestError
from sts_export.generation.arguments import MOST_THREADS, Images, as_list, is_batch, of_each, stop_strings
from sts_export.generation.cache_pool import CachePool
from sts_export.generation.decoding import Decoding, answer_all
from sts_export.generation.graph_runner import GraphRunner
from sts_export.generation.pictures.cache import PictureCache
from sts_export.generation.pictures.stage1 import ENCODER, SELECTOR
from sts_export.generation.result import GenerationResult
from sts_export.generation.stopping import TextStream
from sts_export.generation.timing import milliseconds_since
from sts_export.generation.token_stream import TokenStream, drained, only
from sts_export.media.images import ImageSource, load_image
from sts_export.media.prepared import PreparedImage, View
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.per_request import Budget, Counts, for_request
from sts_export.requests.grammars.compiling import GrammarCompiler
from sts_export.requests.grammars.grammar import Grammar
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.messages import Messages
from sts_export.requests.preprocessor import Preprocessor
from sts_export.requests.request import Request, check_count, checked_logprobs, room_for_answer
from sts_export.requests.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from sts_export.backends.choice import OpenedBackend

BATCH_SIZE = 8  # requests that run together unless said otherwise
_KEPT_CACHES = 8  # requests whose buffers may wait for the next ones: they are large


class Pipeline:
    """An exported bundle, ready to generate.

    Threads may share a pipeline: each request has buffers of its own and is answered as it would be alone.  On the CPU requests
    run side by side; engines on a GPU take one step of one request at a time.

    Args:
        bundle: folder written by ``sts-export``.
        threads: CPU threads of the engine; None lets it choose.
        backend: one of ``sts_export.backends.choice.BACKENDS``; None takes the best that the bundle and the machine offer, or
            the CPU if there are ``threads``, or ONNX Runtime on CUDA if there are ``plugins``.
            Or a backend that was opened for this bundle.
        plugins: library of custom operators for ONNX Runtime on CUDA; None takes the one that is found, if any.
        feature_cache: bytes on the host for features of the last pictures and for what stage 1 kept of them, which are then not
            computed again.

    Raises:
        BundleError: not a valid bundle, or without engines for the backend.
        BackendError: the engine cannot run it.
        RequestError: no such backend; threads for one on a GPU, or plugins for another; the plugins cannot be used.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        threads: int | None = None,
        backend: str | OpenedBackend | None = None,
        plugins: str | Path | None = None,
        feature_cache: int = 0,
    ) -> None:
        if threads is not None:
            check_count("threads", threads, MOST_THREADS)
        from sts_export.backends.choice import OpenedBackend, open_backend

        self.bundle = open_bundle(bundle)
        self.manifest = self.bundle.manifest
        self._preprocessor = Preprocessor.open(self.bundle.folder, self.manifest.model, self.manifest.pruning)
        self.tokenizer = self._preprocessor.tokenizer
        self.generation_defaults = self._preprocessor.generation_defaults
        vocabulary = self.manifest.model.decoder.vocab_size
        self._grammars = GrammarCompiler(self.tokenizer.backend, vocabulary, self.tokenizer.eos_token_ids)
        opened = backend if isinstance(backend, OpenedBackend) else open_backend(self.bundle, backend, threads, plugins)
        self.backend_name, self._backend, self._max_batch = opened.name, opened.backend, opened.max_batch
        self.operators = opened.operators
        self._pictures = PictureCache(feature_cache) if feature_cache else None
        self._graphs = GraphRunner(self._backend, self.manifest, self._pictures)
        self._free_caches = CachePool(_KEPT_CACHES)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the engine holds, GPU memory above all; dropping the pipeline does so, too.

        Requests that other threads are waiting for fail with a BackendError at their next step.
        """
        self._free_caches.close()
        self._backend.close()

    @overload
    def generate(self, prompt: str | Messages, images: Images = ..., **settings: Any) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: Sequence[str | Messages], images: Sequence[Images] = ..., **settings: Any
    ) -> list[GenerationResult]: ...

    def generate(
        self,
        prompt: str | Messages | Sequence[str | Messages],
        images: Any = (),
        *,
        batch_size: int = BATCH_SIZE,
        budget: Budget | list[Budget | None] | None = None,
        keep: Counts | list[Counts | None] | None = None,
        **settings: Any,
    ) -> GenerationResult | list[GenerationResult]:
        """Answer one prompt, or a list of prompts; settings as for :meth:`stream`.

        Args:
            prompt: text or chat messages; or a list of such prompts.
            images: of the one prompt; or a list with, for every prompt, its image, list of images, or None.
            batch_size: at most this many prompts run together, and no more than engines were built for; each needs KV caches
                of its own.
            budget, keep: as for :meth:`stream`; with a list of prompts also a list with one of them, or None, for each.

        Prompts run together whatever their pictures, lengths and limits are, and are answered as they would be alone; when one
        has ended, the next of the list takes its place.

        Raises:
            ImageError, PromptError, RequestError: a request is wrong or does not fit; nothing was run.  In a list, ``request``
                of the error says which.
            RequestError: its settings leave no token to choose; the others of the list are given up.
            BackendError: the engine failed.
        """
        if isinstance(prompt, Sequence) and not prompt and not images and not isinstance(prompt, (str, bytes)):
            return []  # a batch of nothing
        if not is_batch(prompt):
            own: Any = {"budget": budget, "keep": keep}  # a list is refused there
            stream = self.stream(cast("str | Messages", prompt), images, **own, **settings)
            for _ in stream:
                pass
            return stream.result
        check_count("batch_size", batch_size)
        prompts = list(cast("Sequence[str | Messages]", prompt))
        sources = [()] * len(prompts) if images is None or (isinstance(images, Sequence) and not images) else images
        is_list = isinstance(sources, Sequence) and not isinstance(sources, (str, bytes))
        if not is_list or len(sources) != len(prompts):
            raise RequestError(
                f"{len(prompts)} prompts need a list of {len(prompts)} entries for images; give an image, a list or None each"
            )
        budgets, keeps = (of_each(name, given, len(prompts)) for name, given in (("budget", budget), ("keep", keep)))
        requests = []
        for place, (one, theirs, asked, counts) in enumerate(zip(prompts, sources, budgets, keeps, strict=True)):
            try:
                requests.append(self.prepare(one, theirs, budget=asked, keep=counts, **settings))
            except RequestError as error:
                error.request = place
                raise
        return drained(self._run(requests, min(batch_size, self._max_batch or batch_size, len(requests))))

    def stream(
        self,
        prompt: str | Messages,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        logits: LogitsConfig | None = None,
        stop: Sequence[str] | None = None,
        ignore_eos: bool = False,
        budget: Budget | None = None,
        keep: Counts | None = None,
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> TokenStream:
        """Answer one prompt, text piece by piece.  The request is checked before this returns.

        Args:
            prompt: text, or chat messages.
            images: none, one or several: path, bytes or PIL image, in the order of their places in the prompt.
            max_new_tokens: at most the bundle's capacity; None takes the checkpoint's limit or, without one, what fits.
            sampling: None is greedy; :meth:`sampling_defaults` is the checkpoint's own way.
            logits: penalties, biases and exclusions; what is None in it, or None itself, is as in the checkpoint's
                generation_config.json, which transformers' ``generate`` follows, too.
            stop: strings that end the answer and are not part of it; None takes the checkpoint's, () none.
            ignore_eos: keep generating up to max_new_tokens: there are no end tokens, and no stop strings but those given.
            budget: visual tokens that a layer sees on average: ``"32"`` or 32, or ``"10%"`` of each image's own; up to what the
                bundle was exported for, which None takes.
            keep: K and K', instead of a budget.
            logprobs: log-probabilities in the result: 0 for those of its tokens, up to 20 for so many of the most likely ones
                at each place, too; None for none.
            grammar: what the answer has to be, such as JSON of a schema (extra ``serve``); max_new_tokens may cut it.

        Raises:
            BudgetError, ImageError, PromptError, RequestError: the request is wrong or does not fit; nothing was run.
        """
        request = self.prepare(
            prompt,
            images,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            logits=logits,
            stop=stop,
            ignore_eos=ignore_eos,
            budget=budget,
            keep=keep,
            logprobs=logprobs,
            grammar=grammar,
        )
        return TokenStream(only(self._run([request], 1)))

    def sampling_defaults(
        self,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        min_p: float | None = None,
    ) -> SamplingConfig:
        """What transformers' ``generate(do_sample=True)`` does with this checkpoint; what is given goes before it.

        Raises:
            RequestError: as :class:`SamplingConfig`.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "min_p": min_p}
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self.generation_defaults.sampling, **chosen)  # type: ignore[arg-type]

    def pruning(self, budget: Budget | None = None, keep: Counts | None = None) -> PruningConfig:
        """The configuration of requests with this budget or these counts; of others it is the bundle's.

        Raises:
            BudgetError: as for :meth:`stream`.
        """
        return for_request(self.manifest.pruning, budget, keep)

    def score(
        self,
        prompt: str | Messages,
        images: Images,
        token_ids: Sequence[int],
        *,
        budget: Budget | None = None,
        keep: Counts | None = None,
    ) -> NDArray[np.float32]:
        """Logits [steps, vocab] before each of ``token_ids``, which are taken as the answer whatever the logits say.

        Args and Raises: as for :meth:`stream`.
        """
        vocabulary = self.manifest.model.decoder.vocab_size
        if not all(0 <= token < vocabulary for token in token_ids):
            raise RequestError(f"token ids must be between 0 and {vocabulary - 1}")
        request = self.prepare(prompt, images, max_new_tokens=len(token_ids), ignore_eos=True, budget=budget, keep=keep)
        caches = self._take_caches(1)
        prefilled, first = self._graphs.prefill(request, caches, 0)
        tokens = [prefilled.following(step, token) for step, token in enumerate(token_ids[:-1])]
        later = [self._graphs.decode(caches, [token])[0] for token in tokens]
        self._free_caches.give(1, caches)  # not after a failure: they may hold NaN
        return np.stack([first, *later])

    def prepared(self, image: ImageSource) -> PreparedImage:
        """A picture as the vision encoder takes it."""
        return self._preprocessor.images.prepare(load_image(image))

    def features(self, image: ImageSource) -> dict[str, NDArray[Any]]:
        """What the vision encoder makes of a picture: visual_features [crops, rows, width], and what else stage 1 needs."""
        names = [spec.name for spec in self.manifest.graphs[ENCODER].outputs]
        return dict(self._backend.run(ENCODER, self.prepared(image).encoder_inputs, fetch=names))

    def seen(self, image: ImageSource) -> Sequence[View]:
        """The pictures that the vision tower gets, and their token grids."""
        return self._preprocessor.images.views(load_image(image))

    @property
    def feature_lookups(self) -> tuple[int, int]:
        """Of pictures with a ``feature_cache``: for how many the vision encoder did not run, and for how many it did."""
        if self._pictures is None:
            return 0, 0
        found, computed = self._pictures.lookups(ENCODER)
        return self._pictures.lookups(SELECTOR)[0] + found, computed

    @property
    def selection_lookups(self) -> tuple[int, int]:
        """Of pictures with a ``feature_cache``: for how many stage 1 did not run, and for how many it did."""
        return (0, 0) if self._pictures is None else self._pictures.lookups(SELECTOR)

    def prepare_ids(self, prompt: str | Messages, rows_per_image: Sequence[int]) -> NDArray[np.int64]:
        """Prompt token ids [sequence], with VISUAL_ROW as often as each image has rows.

        Raises:
            PromptError: as for :meth:`stream`.
        """
        return self._preprocessor.input_ids(prompt, rows_per_image)

    def prepare(
        self,
        prompt: str | Messages,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        logits: LogitsConfig | None = None,
        stop: Sequence[str] | None = None,
        ignore_eos: bool = False,
        budget: Budget | None = None,
        keep: Counts | None = None,
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> Request:
        """A request, checked and ready to run; Args and Raises as for :meth:`stream`."""
        started = time.perf_counter()
        pruning = self.pruning(budget, keep)
        inputs = self._preprocessor.prepare(prompt, as_list(images), pruning, self.manifest.capacities.rows[0])
        ids, prepared, keeps = inputs.input_ids, inputs.images, inputs.keeps
        own = pruning is not self.manifest.pruning
        new_tokens = room_for_answer(self.manifest, ids, prepared, keeps, max_new_tokens, own_budget=own)
        if max_new_tokens is None:
            new_tokens = min(new_tokens, self.generation_defaults.new_tokens or new_tokens)
        strings = self.generation_defaults.stop if stop is None and not ignore_eos else stop_strings(stop)
        TextStream(self.tokenizer, strings)  # refuses malformed stop strings now, not at the first token
        chosen = SamplingConfig() if sampling is None else sampling
        if not isinstance(chosen, SamplingConfig):
            raise RequestError(f"sampling is a SamplingConfig, not {type(chosen).__name__}")
        processing, reported = self._logits(logits, new_tokens), checked_logprobs(logprobs)
        compiled = self._grammars.of_request(grammar, ignore_eos=ignore_eos)
        passed, asked = milliseconds_since(started), pruning.budget
        given = (ids, prepared, keeps, new_tokens, chosen, strings, ignore_eos, started, passed)
        return Request(*given, processing, asked, reported, compiled)

    def _logits(self, own: LogitsConfig | None, new_tokens: int) -> LogitsConfig:
        """The request's settings over the checkpoint's."""
        if own is None:
            return self.generation_defaults.logits
        if not isinstance(own, LogitsConfig):
            raise RequestError(f"logits is a LogitsConfig, not {type(own).__name__}")
        own.check_vocabulary(self.manifest.model.decoder.vocab_size, of_request=True)
        if own.min_new_tokens is not None and own.min_new_tokens > new_tokens:
            raise RequestError(
                f"min_new_tokens {own.min_new_tokens} is more than the {new_tokens} that may be generated; raise max_new_tokens"
            )
        return own.over(self.generation_defaults.logits)

    def _run(self, requests: Sequence[Request], slots: int) -> Generator[tuple[int, str], None, list[GenerationResult]]:
        """Answer requests, so many together."""
        caches = self._take_caches(slots)
        try:
            results = yield from answer_all(self._decoding(caches), requests)
        except BackendError:
            raise  # the buffers may hold NaN, which would reach the next request through its masked columns
        except (GeneratorExit, RequestError):  # the reader stopped, or a request's settings excluded every token
            if not caches.freed:
                self._free_caches.give(slots, caches)
            raise
        self._free_caches.give(slots, caches)
        return results

    def decoding(self, slots: int) -> Decoding:
        """Slots for requests that :meth:`prepare` made, with caches of their own; at most as many as engines were built for.

        Raises:
            BackendError: the engine has no memory for them.
        """
        check_count("slots", slots)
        return self._decoding(self._take_caches(min(slots, self._max_batch or slots)))

    def _decoding(self, caches: Any) -> Decoding:
        engine = self.backend_name, self.operators
        return Decoding(self._graphs, self.manifest, self.tokenizer, caches, engine)

    def _take_caches(self, slots: int) -> Any:
        found = self._free_caches.take(slots)
        if found is not None:
            return found
        try:
            return self._backend.new_caches(slots)
        except (BackendError, MemoryError):
            if (
                not self._free_caches.clear()
            ):  # buffers of other numbers of slots, of which nothing may hold one here, or it stays
                raise
        return self._backend.new_caches(slots)
