"""README.md of the repository: commands for exactly this one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sts_export.bundle.description import summary
from sts_export.triton.repository.containers import TENSORRT, TRITON, extras, image_name
from sts_export.triton.repository.filling import filled
from sts_export.triton.repository.names import ENCODER, dns_label
from sts_export.triton.repository.plan import Plan
from sts_export.triton.tensors import ENCODER_INPUTS, INPUTS, OUTPUTS, Tensor, encoder_outputs

_LINK = """The bundle is a link to a folder of this machine, so that there are no files for containers here: write the
repository again without `--link` for those.

"""


def page(plan: Plan) -> str:
    """Markdown."""
    settings, pruning = plan.settings, plan.bundle.manifest.pruning
    waits = f"{settings.longest_wait:g} s" if settings.longest_wait else "as long as it takes"
    hosts = ", ".join(f"`{host}`" for host in settings.allow_image_hosts)
    values = {
        "model": plan.model,
        "extras": extras(plan),
        "summary": summary(plan.bundle.manifest),
        "budget": f"{pruning.average:g}",
        "backend": settings.backend,
        "place": f"GPU {', '.join(map(str, plan.gpus))}" if plan.gpus else "CPU",
        "instances": str(plan.instances.count),
        "slots": str(settings.slots),
        "queue": str(settings.max_queue_size),
        "wait": waits,
        "hosts": f"data URLs, and addresses of {hosts}" if hosts else "data URLs only",
        "files": "; files of one folder, by file URLs" if settings.allow_image_folder else "",
        "picture": f"{settings.max_picture / 2**20:g} MiB",
        "inputs": table(INPUTS),
        "outputs": table(OUTPUTS),
        "encoder": _encoder(plan) if plan.with_encoder else "",
        "containers": _containers(plan),
        "tensorrt": _tensorrt(plan),
    }
    return filled("README.md", values).rstrip("\n") + "\n"


def table(tensors: Sequence[Tensor]) -> str:
    """Rows in Markdown, without an end of line."""
    rows = (f"| `{one.name}` | {one.kind.removeprefix('TYPE_')} {list(one.dims)} | {one.meaning} |" for one in tensors)
    return "\n".join(["| tensor | type, without the batch's dimension | |", "|---|---|---|", *rows])


def _encoder(plan: Plan) -> str:
    outputs = encoder_outputs(plan.bundle.manifest.model.decoder.hidden_size)
    name = f"{plan.model}{ENCODER}"
    return filled("readme-encoder", {"encoder": name, "inputs": table(ENCODER_INPUTS), "outputs": table(outputs)})


def _containers(plan: Plan) -> str:
    if plan.link:
        return _LINK
    build = filled("readme-engines", {"model": plan.model}) if plan.build_at_start else ""
    gpus = " --gpus all" if plan.gpus else ""
    volume = f" -v {dns_label(plan.model)}-engines:/models/{plan.model}/1/bundle/engines" if plan.build_at_start else ""
    if folder := plan.settings.allow_image_folder:
        volume += f" --mount {shlex.quote(f'type=bind,source={folder},target={folder},readonly')}"
    values = {"image": image_name(plan), "triton": TRITON, "gpus": gpus, "volume": volume, "build": build}
    return filled("readme-containers", values | {"dns": dns_label(plan.model)})


def _tensorrt(plan: Plan) -> str:
    if plan.runtime is None:
        return ""
    if plan.runtime != "tensorrt":
        plugins = "TensorRT for RTX takes no plugins: the pruning stages are standard operators."
    elif plan.build_at_start and plan.kernels is None:
        plugins = (
            "The container has no plugins, so the pruning stages run as standard operators, stage 1 as a loop of small steps. "
            "`sts-export triton --kernels` with a checkout of sts-export, or a wheel of sts-export-kernels, brings them."
        )
    else:
        plugins = "Engines that need plugins load the library that lies beside them; Triton itself need not know of it."
    pin = f"; the container pins {TENSORRT}, the release of NVIDIA's images {TRITON}" if plan.runtime == "tensorrt" else ""
    names = {"runtime": plan.runtime, "module": plan.runtime.replace("-", "_")}
    return filled("readme-tensorrt", {**names, "pin": pin, "plugins": plugins})
