"""The repository on disk."""

from __future__ import annotations

import json
from pathlib import Path

from sts_export.exporting.staging import remove_abandoned, staging
from sts_export.tensorrt.record import ENGINES
from sts_export.triton.config import config_text
from sts_export.triton.repository.containers import container_files
from sts_export.triton.repository.copying import copy_bundle, link_bundle
from sts_export.triton.repository.filling import filled
from sts_export.triton.repository.names import ENCODER
from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.page import page
from sts_export.triton.repository.plan import MARK, Plan, check_output, make_plan
from sts_export.triton.repository.wheels import pack_sources
from sts_export.triton.settings import BUNDLE
from sts_export.triton.tensors import ENCODER_INPUTS, INPUTS, OUTPUTS, encoder_outputs

VERSION = "1"  # folder of the one version of a model
SOURCES = "kernels.tar.gz"
# What the model of features needs of the settings.
_OF_ENCODER = ("backend", "threads", "allow_image_hosts", "allow_image_folder", "max_picture")
_PROGRAMS = ("run-server", "entrypoint")


def write_repository(options: RepositoryOptions) -> Plan:
    """Write it whole, or leave nothing.

    Raises:
        RequestError, BundleError: it could never be served.
        OutputError: it cannot be written there.
    """
    plan = make_plan(options)
    remove_abandoned(plan.output)
    check_output(plan.output, force=options.force)
    with staging(plan.output, replace=options.force) as folder:
        _write(plan, folder)
    return plan


def _write(plan: Plan, folder: Path) -> None:
    version = _write_model(folder / plan.model, _config(plan), "model")
    if plan.link:
        link_bundle(plan.bundle, version / BUNDLE)
    else:
        copy_bundle(plan.bundle, version / BUNDLE, None if plan.build_at_start else plan.runtime)
    if plan.build_at_start:
        (version / BUNDLE / ENGINES).mkdir()  # where a volume is mounted
    if plan.with_encoder:
        _write_model(folder / f"{plan.model}{ENCODER}", _encoder_config(plan), "encoder")
    texts = {"README.md": page(plan), "run-server": filled("run-server", {})}
    if not plan.link:
        texts |= container_files(plan)
        if plan.compiles_kernels:
            assert plan.kernels is not None
            pack_sources(plan.kernels, folder / SOURCES)
        for wheel in (plan.wheel, None if plan.compiles_kernels else plan.kernels):
            if wheel is not None:
                (folder / wheel.name).write_bytes(wheel.read_bytes())
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in _PROGRAMS:
        if name in texts:
            (folder / name).chmod(0o755)
    (folder / MARK).write_text(json.dumps({"model": plan.model}) + "\n", encoding="utf-8")


def _write_model(folder: Path, config: str, package: str) -> Path:
    """Folder of the model's version."""
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (version / "model.py").write_text(filled("model.py.txt", {"package": package}), encoding="utf-8")
    return version


def _config(plan: Plan) -> str:
    return config_text(
        plan.model,
        INPUTS,
        OUTPUTS,
        plan.settings.parameters(),
        plan.instances,
        max_batch_size=plan.settings.slots,
        decoupled=True,
    )


def _encoder_config(plan: Plan) -> str:
    """Nothing is copied twice: its bundle is the other model's."""
    all_of_them = plan.settings.parameters()
    parameters = {BUNDLE: f"../../{plan.model}/{VERSION}/{BUNDLE}", **{name: all_of_them[name] for name in _OF_ENCODER}}
    return config_text(
        f"{plan.model}{ENCODER}",
        ENCODER_INPUTS,
        encoder_outputs(plan.bundle.manifest.model.decoder.hidden_size),
        parameters,
        plan.instances,
        max_batch_size=0,
        decoupled=False,
    )
