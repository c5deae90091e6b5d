"""Containerfile, start of the container, compose.yaml and kubernetes.yaml."""

from __future__ import annotations

import json
import math
from importlib.metadata import version

from sts_export.backends.choice import CUDA
from sts_export.triton.repository.filling import filled
from sts_export.triton.repository.names import dns_label
from sts_export.triton.repository.plan import Plan

# NVIDIA's images of one release have one CUDA and one TensorRT: 26.07 has CUDA 13.3.1 (docs.nvidia.com, release notes of Triton
# 26.07).  From 24.12 on they are Ubuntu 24.04 with Python 3.12, and the Python backend takes numpy 2.
TRITON, TENSORRT = "26.07", "11.1.0.106"
PLUGINS = "/opt/sts-export/libsts_plugins.so"
_HOUR, _MINUTES = 360, 60  # tries of a probe, one every 10 s
_EXTRAS = {CUDA: "[gpu,triton]", "tensorrt": "[tensorrt,triton]", "tensorrt-rtx": "[tensorrt-rtx,triton]"}


def image_name(plan: Plan, target: str = "complete") -> str:
    """Of a target of the Containerfile, without a registry: one without the model must not be pushed for one that has it."""
    return f"{dns_label(plan.model)}-triton{'' if target == 'complete' else f'-{target}'}:{version('sts-export')}"


def extras(plan: Plan) -> str:
    """Of sts-export, that a server needs."""
    return _EXTRAS.get(plan.settings.backend, "[triton]")


def container_files(plan: Plan) -> dict[str, str]:
    """File name -> text."""
    return {
        "Containerfile": _containerfile(plan),
        "entrypoint": _entrypoint(plan),
        "compose.yaml": _compose(plan),
        "kubernetes.yaml": _kubernetes(plan),
    }


def _containerfile(plan: Plan) -> str:
    source = f"sts-export{extras(plan)}=={version('sts-export')}"
    wheels = [] if plan.wheel is None else [plan.wheel.name]
    if plan.wheel is not None:
        source = f"/opt/sts-export/{plan.wheel.name}{extras(plan)}"
    words = ['"$STS_EXPORT"']
    arguments = ["# What pip installs.", f'ARG STS_EXPORT="{source}"']
    if plan.kernels is not None and not plan.compiles_kernels:
        wheels.append(plan.kernels.name)
        words.append(f"/opt/sts-export/{plan.kernels.name}")
    if plan.runtime == "tensorrt":
        arguments.append("# The release that is in Triton's image and in the one that compiles plugins.")
        arguments.append(f"ARG TENSORRT_VERSION={TENSORRT}")
        words.append('"tensorrt==$TENSORRT_VERSION"')
    pip = "python3 -m pip install --no-cache-dir --break-system-packages"
    install = f"RUN {pip} {' '.join(words)}"
    if plan.settings.backend == CUDA:  # both packages own one folder
        installed = "$(python3 -m pip show onnxruntime-gpu | sed -n 's/^Version: //p')"
        install += f' \\\n  && {pip} --force-reinstall --no-deps "onnxruntime-gpu=={installed}"'
    copied = [f"COPY {' '.join(wheels)} /opt/sts-export/"] if wheels else []
    if plan.compiles_kernels:
        copied.append("COPY --from=kernels /kernels/libsts_plugins.so /kernels/libsts_plugins_autoload.so /opt/sts-export/")
    return filled(
        "Containerfile",
        {
            "triton": TRITON,
            "kernels_stage": filled("Containerfile-kernels", {}) if plan.compiles_kernels else "",
            "arguments": "\n".join(arguments),
            "copied": "".join(f"{line}\n" for line in copied),
            "install": install,
            "engines": _ENGINES.format(model=plan.model) if plan.build_at_start else "",
            "models": "".join(f"COPY --chown=1000:1000 {name} /models/{name}\n" for name in plan.models),
            "start": _start(plan),
        },
    )


def _entrypoint(plan: Plan) -> str:
    if not plan.build_at_start:
        return filled("entrypoint", {"build": ""})
    plugins = f" --plugins {PLUGINS}" if plan.compiles_kernels else ""
    values = {"model": plan.model, "runtime": str(plan.runtime), "slots": str(plan.settings.slots), "plugins": plugins}
    return filled("entrypoint", {"build": filled("entrypoint-build", values)})


def _compose(plan: Plan) -> str:
    volumes, named = "", ""
    if plan.build_at_start:
        volumes += f"      - type: volume\n        source: engines\n        target: /models/{plan.model}/1/bundle/engines\n"
        named = "volumes:\n  engines: {}\n"
    if plan.settings.allow_image_folder:
        folder = _compose_text(plan.settings.allow_image_folder)
        volumes += f"      - type: bind\n        source: {folder}\n        target: {folder}\n        read_only: true\n"
    return filled(
        "compose.yaml",
        {
            "dns": dns_label(plan.model),
            "image": image_name(plan, "server"),
            "volumes": volumes,
            "start": _start(plan),
            "gpus": filled("compose-gpus", {}) if plan.gpus else "",
            "named": named,
        },
    )


def _kubernetes(plan: Plan) -> str:
    dns, engines = dns_label(plan.model), ""
    size = max(1, math.ceil(sum(record.size for record in plan.bundle.manifest.weights.files) / 2**30))
    if plan.build_at_start:  # engines hold the weights again
        engines = filled("kubernetes-claim", {"dns": dns, "storage": f"{2 * size + 2}Gi"})
    gpus = max(plan.gpus, default=-1) + 1
    memory = f"{2 + 2 * size * plan.processes}Gi"
    pictures = ""
    if plan.settings.allow_image_folder:  # what volume has it here nobody knows
        folder = json.dumps(plan.settings.allow_image_folder)
        pictures = f"# Mount the folder of pictures, {folder}, into the container: without it the model does not load.\n"
    return filled(
        "kubernetes.yaml",
        {
            "pictures": pictures,
            "claim": engines,
            "dns": dns,
            "image": image_name(plan),
            "tolerations": _TOLERATIONS if gpus else "",
            "patience": str(_HOUR if plan.build_at_start else _MINUTES),
            "memory": memory,
            "limits": f'memory: {memory}, nvidia.com/gpu: "{gpus}"' if gpus else f"memory: {memory}",
            "model": plan.model,
            "mount": f"            - {{name: engines, mountPath: /models/{plan.model}/1/bundle/engines}}\n" if engines else "",
            "volume": _VOLUME.format(dns=dns) if engines else "",
        },
    )


_ENGINES = """# A volume that is mounted there takes its owner.
RUN install -d -o 1000 -g 1000 /models/{model}/1/bundle/engines
"""
_VOLUME = """        - name: engines
          persistentVolumeClaim: {{claimName: {dns}-engines}}
"""
_TOLERATIONS = "      tolerations:\n        - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}\n"


def _start(plan: Plan) -> str:
    """How long a container may take before it counts as ill."""
    return "1h" if plan.build_at_start else "10m"


def _compose_text(text: str) -> str:
    """JSON's strings are YAML's; compose's own variables begin with a dollar."""
    return json.dumps(text, ensure_ascii=False).replace("$", "$$")
