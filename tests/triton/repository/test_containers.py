"""Containerfile, compose.yaml and kubernetes.yaml by tools that know their syntax, and that they agree with each other."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from sts_export.serving.measures import TIMES
from tests.triton.repository.helpers import MODEL, add_engines, write, write_wheel

yaml = pytest.importorskip("yaml")
ENGINES = f"/models/{MODEL}/1/bundle/engines"
CHECKOUT = Path(__file__).parents[3]
CASES: dict[str, dict[str, Any]] = {
    "cpu": {},
    "cuda": {"gpus": (0,), "backend": "onnxruntime-cuda"},
    "engines": {"gpus": (0, 1), "backend": "tensorrt"},
    "built": {"gpus": (1,), "backend": "tensorrt", "build_at_start": True, "with_encoder": True},
    "kernels": {"gpus": (0,), "backend": "tensorrt", "build_at_start": True, "kernels": CHECKOUT},
    "rtx": {"gpus": (0,), "backend": "tensorrt-rtx", "build_at_start": True},
}


@pytest.fixture(scope="module")
def repositories(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repositories")
    bundle = Path(shutil.copytree(origin / "bundle", folder / "bundle"))
    add_engines(bundle, max_batch=8)
    return {name: write(bundle, folder / name, **options) for name, options in CASES.items()}


def manifests(repository: Path) -> dict[str, Any]:
    """By kind."""
    found = list(yaml.safe_load_all((repository / "kubernetes.yaml").read_text()))
    assert len({item["kind"] for item in found}) == len(found)
    return {item["kind"]: item for item in found}


def compose(repository: Path) -> Any:
    return yaml.safe_load((repository / "compose.yaml").read_text())


# Containerfile


@pytest.mark.parametrize("case", CASES)
def test_hadolint(repositories: dict[str, Path], case: str) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", str(repositories[case] / "Containerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("case", CASES)
def test_what_is_copied_is_there(repositories: dict[str, Path], case: str) -> None:
    repository = repositories[case]
    for line in (repository / "Containerfile").read_text().splitlines():
        words = line.split()
        if words and words[0] in ("COPY", "ADD") and "--from=kernels" not in words:
            sources = [word for word in words[1:-1] if not word.startswith("--")]
            assert sources and all((repository / source).exists() for source in sources), line


@pytest.mark.parametrize(
    ("case", "installed"),
    [
        ("cpu", "[triton]"),
        ("cuda", "[gpu,triton]"),
        ("engines", "[tensorrt,triton]"),
        ("built", "[tensorrt,triton]"),
        ("rtx", "[tensorrt-rtx,triton]"),
    ],
)
def test_what_is_installed(repositories: dict[str, Path], case: str, installed: str) -> None:
    text = (repositories[case] / "Containerfile").read_text()
    assert f'ARG STS_EXPORT="sts-export{installed}==' in text
    assert ('"tensorrt==$TENSORRT_VERSION"' in text) == (installed == "[tensorrt,triton]")
    assert ("onnxruntime-gpu==" in text) == (case == "cuda")
    assert "USER 1000:1000" in text and text.index("USER 1000:1000") < text.index("ENTRYPOINT")


def test_wheels_are_installed(origin: Path, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "sts_export-0.1.0-py3-none-any.whl")
    kernels = write_wheel(tmp_path / "sts_export_kernels-0.1.0-x.whl", "sts_export_kernels", "sts_export_kernels/__init__.py")
    text = (write(origin / "bundle", tmp_path / "r", wheel=wheel, kernels=kernels) / "Containerfile").read_text()
    assert f"COPY {wheel.name} {kernels.name} /opt/sts-export/\n" in text
    assert f'ARG STS_EXPORT="/opt/sts-export/{wheel.name}[triton]"' in text
    assert f'"$STS_EXPORT" /opt/sts-export/{kernels.name}\n' in text


def test_plugins_are_compiled_where_there_are_sources(repositories: dict[str, Path]) -> None:
    text = (repositories["kernels"] / "Containerfile").read_text()
    assert "FROM nvcr.io/nvidia/tensorrt:${TRITON_VERSION}-py3 AS kernels" in text
    assert "--plugins /opt/sts-export/libsts_plugins.so" in (repositories["kernels"] / "entrypoint").read_text()
    assert "kernels" not in (repositories["built"] / "Containerfile").read_text()
    assert "--plugins" not in (repositories["built"] / "entrypoint").read_text()


# compose.yaml


@pytest.mark.parametrize("case", CASES)
def test_compose(repositories: dict[str, Path], case: str) -> None:
    project, options = compose(repositories[case]), CASES[case]
    service = project["services"]["triton"]
    assert service["build"] == {"context": ".", "dockerfile": "Containerfile", "target": "server"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    model, *others = service["volumes"]
    assert model == {"type": "bind", "source": ".", "target": "/models", "read_only": True}
    assert ("deploy" in service) == bool(options.get("gpus"))
    if options.get("build_at_start"):
        assert others == [{"type": "volume", "source": "engines", "target": ENGINES}]
        assert project["volumes"] == {"engines": {}}
        assert (repositories[case] / MODEL / "1/bundle/engines").is_dir(), "nothing can be mounted there where all is read-only"
    else:
        assert others == [] and "volumes" not in project


def test_a_folder_of_pictures_is_mounted(origin: Path, tmp_path: Path) -> None:
    """Dollars are compose's own."""
    folder = tmp_path / 'a $HOME "b": 漢 😀'
    folder.mkdir()
    repository = write(origin / "bundle", tmp_path / "r", allow_image_folder=folder)
    service = compose(repository)["services"]["triton"]
    mounted = str(folder).replace("$", "$$")
    assert service["volumes"][1] == {"type": "bind", "source": mounted, "target": mounted, "read_only": True}
    (line,) = [line for line in (repository / "README.md").read_text().splitlines() if line.startswith("docker run")]
    assert f"type=bind,source={folder},target={folder},readonly" in shlex.split(line)
    assert "Deployment" in manifests(repository) and "# Mount the folder" in (repository / "kubernetes.yaml").read_text()


@pytest.mark.parametrize("case", CASES)
def test_the_health_checks_agree(repositories: dict[str, Path], case: str) -> None:
    check = compose(repositories[case])["services"]["triton"]["healthcheck"]
    text = (repositories[case] / "Containerfile").read_text()
    assert json.dumps(check["test"][1:]) in text and f"--start-period={check['start_period']}" in text


# kubernetes.yaml


@pytest.mark.parametrize("case", CASES)
def test_the_schemas_of_kubernetes(repositories: dict[str, Path], case: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in manifests(repositories[case]).values():
        validator.validate(manifest, validator.latest_version(), strict=True)


def test_a_wrong_manifest_is_noticed(repositories: dict[str, Path]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    deployment = manifests(repositories["cpu"])["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["image_"] = "x"
    with pytest.raises(validator.ValidationError):
        validator.validate(deployment, validator.latest_version(), strict=True)


@pytest.mark.parametrize("case", CASES)
def test_manifests_fit_each_other(repositories: dict[str, Path], case: str) -> None:
    found, options = manifests(repositories[case]), CASES[case]
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == ports
    assert all(container[probe]["httpGet"]["port"] in ports for probe in ("startupProbe", "readinessProbe", "livenessProbe"))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert mounts["shm"] == "/dev/shm"
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (str(max(options["gpus"]) + 1) if "gpus" in options else None), "numbers are those in the container"
    if options.get("build_at_start"):
        assert mounts["engines"] == ENGINES
        (volume,) = [item for item in pod["spec"]["volumes"] if item["name"] == "engines"]
        assert volume["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
        assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    else:
        assert "PersistentVolumeClaim" not in found and "engines" not in mounts


def test_the_autoscaler_and_the_rule_name_one_metric(repositories: dict[str, Path]) -> None:
    found = manifests(repositories["cpu"])
    (rule,) = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["rules"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == "sts_request_queue_seconds"
    assert "request_queue_time_seconds" in TIMES, "what the model measures, with sts_ before it"
    query = rule["metricsQuery"]
    assert query.count("<<.LabelMatchers>>") == 2 and query.count("(") == query.count(")")
    assert all(f"sts_request_queue_time_seconds_{part}" in query for part in ("sum", "count"))


def test_images_have_a_name_for_each_target(repositories: dict[str, Path]) -> None:
    """What compose builds has no model in it, and must not be pushed for the one that has."""
    (container,) = manifests(repositories["cpu"])["Deployment"]["spec"]["template"]["spec"]["containers"]
    image = container["image"].removeprefix("registry.example.org/")
    assert image in (repositories["cpu"] / "README.md").read_text()
    assert compose(repositories["cpu"])["services"]["triton"]["image"] == image.replace("-triton:", "-triton-server:") != image


@pytest.mark.parametrize("name", ["7.B_x", "x" * 100, "true", "null", "1e3"])
def test_any_name_of_a_model_is_safe(origin: Path, tmp_path: Path, name: str) -> None:
    """Where YAML would take it for something else, too."""
    validator = pytest.importorskip("kubernetes_validate")
    repository = write(origin / "bundle", tmp_path / "r", model_name=name, gpus=(0,), build_at_start=True)
    for manifest in manifests(repository).values():
        validator.validate(manifest, validator.latest_version(), strict=True)
        assert isinstance(manifest["metadata"]["name"], str)
    project = compose(repository)
    assert isinstance(project["name"], str)
    assert project["services"]["triton"]["volumes"][1]["target"] == f"/models/{name}/1/bundle/engines"
