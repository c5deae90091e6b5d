"""What is checked before engines or graphs for TensorRT are made."""

from __future__ import annotations

from sts_export.bundle.manifest import Bundle
from sts_export.errors import RequestError

# NvInfer.h on ITopKLayer: a larger k is an error at run time.
TOPK_LIMIT = 3840


def check_options(
    bundle: Bundle,
    *,
    max_batch: int,
    optimization_level: int | None,
    workspace_mb: int | None,
    plugins: str | None,
    use_plugins: bool,
) -> None:
    """The settings that both share; see :class:`sts_export.tensorrt.build.BuildRequest`.

    Raises:
        RequestError: a number out of range, a contradiction, or a bundle that TensorRT cannot take.
    """
    if bundle.manifest.quantization is not None:
        raise RequestError(
            f"{bundle.folder} has {bundle.manifest.quantization} weights, which are for ONNX Runtime on CPU only; "
            "export without --quantize for TensorRT"
        )
    keep = bundle.manifest.pruning.keep_stage1
    if keep > TOPK_LIMIT and bundle.manifest.pruning.keep_stage1 < bundle.manifest.pruning.num_visual_tokens:
        raise RequestError(
            f"stage 1 keeps up to {keep} tokens of a picture, and TensorRT sorts at most {TOPK_LIMIT}; "
            "export with a smaller --budget or --max-visual-tokens"
        )
    try:
        str(bundle.folder.resolve()).encode()
        str(bundle.weights_folder.resolve()).encode()
    except UnicodeEncodeError:
        raise RequestError("TensorRT takes no path that is not UTF-8; rename the bundle's folder") from None
    if not 1 <= max_batch <= 256:
        raise RequestError(f"--max-batch must be between 1 and 256, not {max_batch}")
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise RequestError(f"--optimization-level must be between 0 and 5, not {optimization_level}")
    if workspace_mb is not None and workspace_mb < 1:
        raise RequestError(f"--workspace must be at least 1 MB, not {workspace_mb}")
    if plugins is not None and not use_plugins:
        raise RequestError("--plugins and --no-plugins contradict each other; leave one of them out")
