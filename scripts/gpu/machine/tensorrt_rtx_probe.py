"""Does TensorRT-RTX build and run an engine on this GPU?

``python -m scripts.gpu.machine.tensorrt_rtx_probe`` prints the answer.

Its builder names the compute capabilities it is made for, and data-centre GPUs are not always among them; only trying tells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_TIMEOUT_S = 120
_SIZE = 64


def probe() -> dict[str, Any]:
    """Try it in a process of its own, which may crash.

    Returns:
        ``built``, ``ran`` and ``right`` (the numbers, too), and ``error``: None, or the first thing that went wrong.
    """
    answer: dict[str, Any] = {"built": False, "ran": False, "right": False, "error": None}
    try:
        done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {**answer, "error": f"no answer within {_TIMEOUT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        answer |= json.loads(lines[-1])
    if done.returncode and answer["error"] is None:
        answer["error"] = f"the process ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return answer


def _try() -> dict[str, Any]:
    """Relu(x @ x) in float16, against torch."""
    answer: dict[str, Any] = {"built": False, "ran": False, "right": False, "error": None}
    messages: list[str] = []
    try:
        import tensorrt_rtx as trt
        import torch

        engine = _build(trt, _log(trt, messages))
        answer |= {"version": trt.__version__, "built": True}
        if not torch.cuda.is_available():
            return {**answer, "error": "there is no CUDA GPU here (torch sees none)"}
        print(json.dumps({**answer, "error": "the process crashed while the engine ran"}), flush=True)
        answer |= {"right": _run(trt, engine, _log(trt, messages)), "ran": True}
        if not answer["right"]:
            answer["error"] = "the engine computes wrong numbers"
    except Exception as error:  # of tensorrt_rtx, pybind11 or torch
        answer["error"] = " | ".join([f"{type(error).__name__}: {error}", *messages])[:1000]
    return answer


def _log(trt: Any, messages: list[str]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    return Log()


def _build(trt: Any, log: Any) -> Any:
    from sts_export.tensorrt.runtimes import strongly_typed

    builder = trt.Builder(log)
    network = builder.create_network(strongly_typed(trt))
    x = network.add_input("x", trt.DataType.HALF, (_SIZE, _SIZE))
    no_change = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(x, no_change, x, no_change).get_output(0)
    y = network.add_activation(product, trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    if engine is None:
        raise RuntimeError("the builder made no engine")
    return engine


def _run(trt: Any, serialized: Any, log: Any) -> bool:
    import torch

    cuda: Any = torch.cuda
    x = torch.randn(_SIZE, _SIZE, dtype=torch.float16, device="cuda")
    y = torch.full_like(x, torch.nan)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise RuntimeError("the runtime takes no engine of its own builder")
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError("no execution context")
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    if not context.execute_async_v3(stream.cuda_stream):
        raise RuntimeError("the engine did not run")
    stream.synchronize()
    expected = (x.double() @ x.double()).relu()
    return bool(((y.double() - expected).norm() / expected.norm()) < 1e-2)


if __name__ == "__main__":
    print(json.dumps(_try()))
