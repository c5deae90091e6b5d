"""Sessions of ONNX Runtime on the CPU or on a CUDA GPU, and what stands in the way of the GPU.

What onnxruntime-gpu 1.31.1 leaves to the CPU in the graphs of LLaVA, LLaVA-NeXT and Qwen2.5-VL (float32, float16, bfloat16),
as its sessions say themselves (``session.record_ep_graph_assignment_info``): Concat, Squeeze, Gather, Add, Sub, Mul and Min of
shapes, and the two lengths that GroupQueryAttention takes (onnxruntime_attention.py).  All other nodes have CUDA kernels:
TensorScatter, Attention, RotaryEmbedding, RMSNormalization, Loop, ArgMin, TopK, ScatterElements, GatherND and CumSum among
them; Conv, ArgMin and ReduceMax need cuDNN.

That was asked on an imitation of the CUDA libraries whose kernels do nothing, and so were the launches, copies and waits that
docs/onnxruntime_cuda.md lists; no graph has run on a GPU yet.  A token of decode copies its few indices to the GPU and its
logits back, and nothing in between.
Sources: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from sts_export.backends.cuda_driver import count_gpus
from sts_export.backends.onnxruntime.cuda_libraries import load_cuda_libraries
from sts_export.errors import BackendError
from sts_export.lowering.onnxruntime_attention import Device

CUDA_PROVIDER = "CUDAExecutionProvider"
# onnxruntime and onnxruntime-gpu share a folder: whichever was unpacked last is what runs.
INSTALL_GPU = "pip install 'sts-export[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
_ERROR, _FATAL = 3, 4  # levels of ONNX Runtime's log
_USE_CPU = "run with --backend onnxruntime"
_CUDA_OPTIONS = {
    "device_id": "0",
    "arena_extend_strategy": "kSameAsRequested",  # the other one doubles: up to twice the memory of the weights
    "use_tf32": "0",  # ten bits of mantissa are not float32
    "cudnn_conv_algo_search": "HEURISTIC",  # not a search for every number of crops
    # No enable_cuda_graph: it takes fixed shapes and addresses and no node on the CPU; ours compute shapes there.
}
# FlashAttention (1) or memory-efficient attention (2).  Left to itself (0), ONNX Runtime prefers cuDNN's on an H100, and builds
# a plan for every new (batch, query length, capacity): each prompt of a new length would wait for one.
SDPA_KERNEL = "3"
_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "bad_alloc", "bad allocation")


@dataclass(frozen=True)
class SessionFactory:
    """Makes sessions.

    Args:
        threads: intra-op threads on the CPU; None leaves it to ONNX Runtime (one per physical core).
        operators: library of custom operators (operators.py) for every session: harmless where a graph calls none of them.
            A registered operator goes before the function of the same name that the graph brings.
        sdpa_kernel: attention kernels that the CUDA provider may take, as its option of that name.

    Raises:
        BackendError: the GPU cannot be used; says what to install.
    """

    device: Device
    threads: int | None = None
    operators: Path | None = None
    sdpa_kernel: str = SDPA_KERNEL

    def __post_init__(self) -> None:
        if self.device == "cuda":
            _start_cuda()

    def open(
        self, graph: bytes, *, weights: Path | None = None, prepack: bool = False, spin: bool = False
    ) -> ort.InferenceSession:
        """A session for a serialized model.

        Args:
            weights: folder of its external data.
            prepack: pack weights for the matrix kernels of the CPU.
            spin: threads of the CPU wait for work in a loop until the call ends.

        Raises:
            BackendError: ONNX Runtime refuses the model, or the device cannot be used.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL  # what goes wrong is said once, by the error
        if weights is not None:
            # Linked weights lie outside the bundle, where a model loaded by path may not refer to.
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.resolve()))
        if self.operators is not None:
            guarded(self.device, options.register_custom_ops_library, str(self.operators))
        if self.device == "cuda":
            return self._open_cuda(graph, options)
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session: ort.InferenceSession = guarded(
            self.device, ort.InferenceSession, graph, options, providers=["CPUExecutionProvider"]
        )
        return session

    def _open_cuda(self, graph: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        options.intra_op_num_threads = 1  # a few numbers of shapes are all that is computed on the CPU
        provider = (CUDA_PROVIDER, {**_CUDA_OPTIONS, "sdpa_kernel": self.sdpa_kernel})
        session: ort.InferenceSession = guarded(self.device, ort.InferenceSession, graph, options, providers=[provider])
        if CUDA_PROVIDER not in session.get_providers():  # it takes the CPU then, and only logs that
            raise BackendError(
                f"ONNX Runtime does not start its CUDA provider; install it again ({INSTALL_GPU}), or {_USE_CPU}"
            )
        return session


def guarded(device: Device, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ONNX Runtime.

    Raises:
        BackendError: it failed; says what to do.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:  # onnxruntime raises its own classes, which share no base but Exception
        text = " ".join(str(error).split())
        if any(sign in text.lower() for sign in _OUT_OF_MEMORY):
            where, others = ("GPU ", "end what else uses the GPU, ") if device == "cuda" else ("", "")
            raise BackendError(
                f"not enough {where}memory: {others}run fewer requests together, or export again with smaller capacities or a "
                f"narrower --dtype ({text[:150]})"
            ) from error
        advice = (
            "export the bundle again" if device == "cpu" else f"install CUDA and cuDNN again ({INSTALL_GPU}), or {_USE_CPU}"
        )
        raise BackendError(f"ONNX Runtime failed: {text[:300]}; {advice}") from error


def cuda_refusal() -> str | None:
    """Why ONNX Runtime cannot use a CUDA GPU, as far as that shows without trying; None if nothing speaks against it."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        return f"this ONNX Runtime has no CUDA provider: {INSTALL_GPU}"
    if not count_gpus():
        return "there is no CUDA GPU that this process may use; install the NVIDIA driver, or " + _USE_CPU
    return None


def _start_cuda() -> None:
    """Load CUDA and cuDNN as pip installs them, and try the GPU.  A session that cannot would silently run on the CPU.

    Raises:
        BackendError: it does not work; says what to install.
    """
    if (reason := cuda_refusal()) is not None:
        raise BackendError(reason)
    said = io.StringIO()
    load_cuda_libraries(getattr(ort, "cuda_version", ""))
    with contextlib.redirect_stdout(said):  # where it complains
        ort.preload_dlls()
    ort.set_default_logger_severity(_FATAL)  # what goes wrong is said once, by the error
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:
        failures = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
        text = failures[0] if failures else "".join(str(error).rpartition("CUDA failure")[1:]).split(";")[0]
        raise BackendError(
            f"ONNX Runtime cannot use CUDA ({' '.join(text.split())[:150]}); update the NVIDIA driver, install it again "
            f"({INSTALL_GPU}), or {_USE_CPU}"
        ) from error
    finally:
        ort.set_default_logger_severity(_ERROR)
