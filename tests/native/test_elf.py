"""Shared libraries read without loading them, beside what the linker and `nm` say of the same files."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.native.elf import MACHINES, exported_names, machine_of
from tests.support.shared_libraries import AARCH64, X86_64, compiled, headers_only, operators_source

SOURCE = operators_source() + "int shared_number = 3; static int own(void) { return puts(0); } int call(void) { return own(); }"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("int puts(const char *);\n" + SOURCE, tmp_path_factory.mktemp("elf") / "libsome.so")


def test_exported_names(library: Path) -> None:
    """Functions and data, neither what is static nor what is imported."""
    names = exported_names(library)
    assert names is not None
    assert {"RegisterCustomOps", "stsOperatorsVersion", "stsOnnxRuntimeApiVersion", "shared_number", "call"} <= names
    assert not {"own", "puts"} & names


def test_names_are_those_of_nm(library: Path) -> None:
    if (nm := shutil.which("nm")) is None:
        pytest.skip("nm is absent")
    import onnxruntime

    extension = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*.so"))
    for file in (library, extension):
        listed = subprocess.run([nm, "-D", "--defined-only", file], capture_output=True, text=True, check=True).stdout
        # Names may carry a version; local and absolute symbols of the linker are nobody's export.
        wanted = {line.split()[2].partition("@")[0] for line in listed.splitlines() if line.split()[1] not in "abdnrt"}
        found = exported_names(file)
        assert found is not None and wanted <= found
        assert all(name in listed for name in found)


def test_no_truncation_is_whole(library: Path, tmp_path: Path) -> None:
    """Loading such a file can kill the process, so it has to show before."""
    content, cut = library.read_bytes(), tmp_path / "cut.so"
    lengths = {*range(0, len(content), 97), *range(len(content) - 200, len(content)), *range(200)}
    for length in sorted(lengths):
        cut.write_bytes(content[:length])
        assert exported_names(cut) is None, f"{length} of {len(content)} bytes"
    cut.write_bytes(content)
    assert exported_names(cut) == exported_names(library)


@pytest.mark.parametrize("part", ["segment", "section"])
def test_what_lies_behind_the_end_is_missing(library: Path, tmp_path: Path, part: str) -> None:
    """The tables are whole, and a part that they place is not."""
    content = bytearray(library.read_bytes())
    table = int.from_bytes(content[32:40] if part == "segment" else content[40:48], "little")
    # Sizes in the file: p_filesz of the first segment, sh_size of the first section, which comes after the empty one.
    field = table + 32 if part == "segment" else table + 64 + 32
    file = tmp_path / "changed.so"
    for size, whole in ((1, True), (len(content), part == "segment"), (len(content) + 1, False)):
        content[field : field + 8] = size.to_bytes(8, "little")
        file.write_bytes(content)
        assert (exported_names(file) is not None) == whole, size


def test_an_end_of_zeros_exports_nothing(library: Path, tmp_path: Path) -> None:
    """A download that was given its length before its content."""
    content, file = library.read_bytes(), tmp_path / "hollow.so"
    sections_at = int.from_bytes(content[40:48], "little")
    for length in range(64, sections_at, 1009):
        file.write_bytes(content[:length] + bytes(len(content) - length))
        assert not exported_names(file)


@given(st.data())
def test_whatever_its_bytes_are_it_is_only_read(library: Path, data: st.DataObject) -> None:
    """Headers of any content end in an answer."""
    content = bytearray(library.read_bytes())
    sections_at = int.from_bytes(content[40:48], "little")
    places = st.one_of(st.integers(16, 63), st.integers(sections_at, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = value
    file = library.with_suffix(".changed")
    file.write_bytes(content)
    assert exported_names(file) is None or isinstance(exported_names(file), frozenset)


def test_headers_written_by_hand(tmp_path: Path) -> None:
    """The stand-in that other tests use."""
    for machine in (X86_64, AARCH64):
        (tmp_path / "some.so").write_bytes(headers_only(["one", "two"], machine))
        assert machine_of(tmp_path / "some.so") == MACHINES[machine]
        assert exported_names(tmp_path / "some.so") == frozenset({"one", "two"})


def test_machine_of_this_interpreter(library: Path) -> None:
    platform = sysconfig.get_platform().replace("_", "-")
    machine = machine_of(library)
    assert machine is not None and platform.endswith(machine)
