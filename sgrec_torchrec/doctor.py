"""Reads what is installed, writes what it gives, and one line that mends each fault.

Every check is a pure function over an ``Installation``, so broken ones can be made up.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import typing
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.config.extras import EXTRAS as EXTRAS

TESTED = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0"}
"""The triple that this project is tested with."""
TORCHMETRICS = "1.0.3"
"""torchrec 1.8.0 requires exactly this one."""
PYTHONS = ((3, 11), (3, 12))
COMPONENT = ("dist", "torchx_components.dist")
"""Entry point that lets ``torchx run dist.ddp`` take the script as its first word."""
TRAIN = ("torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
"""Where one of these is, the others must be, and fit."""
SHIM = Path("share", "sgrec_torchrec", "fbgemm_gpu_cpu_shim")
"""In an environment that has a wheel: what .ci holds in a checkout."""

_PROBE = """
import json
found = {"errors": {}, "cuda": None, "device": "cpu"}
def attempt(name, action):
    try:
        action()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found["errors"][name] = lines[0]
def use_torch():
    import torch
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["device"] = f"{count} x {torch.cuda.get_device_name(0)}"
def use_fbgemm():
    import fbgemm_gpu, torch
    torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
def use_torchrec():
    import torchrec
for name, action in (
    ("torch", use_torch), ("fbgemm", use_fbgemm), ("torchrec", use_torchrec)
):
    attempt(name, action)
print("PROBE" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What one Python environment holds."""

    executable: str
    python: tuple[int, int]
    root: Path | None
    """Folder of this project's checkout; None for a wheel."""
    versions: Mapping[str, str]
    """Distribution name, lower case with dashes -> version."""
    components: Mapping[str, str]
    """Entry points of the group torchx.components: name -> module."""
    has_driver: bool
    """True where nvidia-smi answers."""
    torch_cuda: str | None
    """CUDA version that torch was built for; None for a CPU build."""
    device: str
    import_errors: Mapping[str, str]
    """torch, fbgemm or torchrec -> first line of what went wrong when it was used."""
    origin: str | None = None
    """What pip installed the wheel from, where that is still there: a file."""
    shim: Path | None = None
    """Folder of the shim that a wheel brought."""

    @property
    def wants_train(self) -> bool:
        """True where torchrec should work: in a checkout, and beside any part of it."""
        return self.root is not None or any(name in self.versions for name in TRAIN)

    @property
    def wants_cuda(self) -> bool:
        """True where both the driver and torch are for CUDA."""
        return self.has_driver and self.torch_cuda is not None

    @property
    def has_cuda_fbgemm(self) -> bool:
        """True for the real fbgemm-gpu, false for the shim that stands for it."""
        version = self.versions.get("fbgemm-gpu")
        return version is not None and not version.endswith("+cpu")

    @property
    def fbgemm(self) -> str | None:
        """Version of the fbgemm that is there, whichever its build."""
        if "fbgemm-gpu-cpu" in self.versions:
            return self.versions["fbgemm-gpu-cpu"]
        return self.versions.get("fbgemm-gpu") if self.has_cuda_fbgemm else None

    def pip(self, arguments: str) -> str:
        """A pip command for this environment, activated or not."""
        return f"{self.executable} -m pip {arguments}"

    def install_self(self, extra: str = "", options: str = "") -> str:
        """Install this project again, with an extra or without."""
        what = str(self.root or self.origin or "sgrec_torchrec")
        what = f"'{what}[{extra}]'" if extra else what
        editable = "--editable " if self.root is not None else ""
        return self.pip(f"install {options}{editable}{what}")

    def shim_folder(self) -> Path | None:
        """Where pip finds what marks fbgemm-gpu-cpu as fbgemm-gpu."""
        return self.root / ".ci" / SHIM.name if self.root is not None else self.shim

    def reinstall_fbgemm(self) -> str:
        """Remove both builds (they share a folder), install the one that fits."""
        remove = self.pip("uninstall -y fbgemm-gpu fbgemm-gpu-cpu")
        if self.wants_cuda:
            build = f"fbgemm-gpu=={TESTED['fbgemm']}"
        else:
            build = str(self.shim_folder() or f"fbgemm-gpu-cpu=={TESTED['fbgemm']}")
        return f"{remove}; {self.pip(f'install {build}')}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is broken, and the command that mends it."""

    what: str
    mend: str


def check_python(installation: Installation) -> Fault | None:
    """Python must be one of ``PYTHONS``."""
    if installation.python in PYTHONS:
        return None
    major, minor = installation.python
    return Fault(
        f"Python {major}.{minor} has no tested builds; 3.11 and 3.12 have",
        "make distclean && make PYTHON=python3.12 setup"
        if installation.root is not None
        else "python3.12 -m venv NEW_FOLDER, and install into that",
    )


def check_fbgemm_builds(installation: Installation) -> Fault | None:
    """Exactly one build of fbgemm, the one for this machine."""
    if not installation.wants_train:
        return None
    has_cpu = "fbgemm-gpu-cpu" in installation.versions
    if installation.has_cuda_fbgemm and has_cpu:
        what = "fbgemm-gpu (CUDA) and fbgemm-gpu-cpu overwrote each other's files"
    elif installation.has_cuda_fbgemm and not installation.wants_cuda:
        if installation.torch_cuda is None:
            what = "fbgemm-gpu is built for CUDA, but torch is built for CPU"
        else:
            what = "fbgemm-gpu is built for CUDA, but no NVIDIA driver answers"
    elif has_cpu and installation.wants_cuda:
        what = "fbgemm-gpu-cpu cannot keep tables on the GPU that torch sees"
    elif installation.fbgemm is None:
        what = "fbgemm is not installed"
    else:
        return None
    return Fault(what, installation.reinstall_fbgemm())


def check_shim(installation: Installation) -> Fault | None:
    """On CPU, pip must know that fbgemm-gpu-cpu provides fbgemm-gpu."""
    versions = installation.versions
    if "fbgemm-gpu-cpu" not in versions or "fbgemm-gpu" in versions:
        return None
    shim = installation.shim_folder()
    if shim is None:
        return None
    return Fault(
        "pip does not know that fbgemm-gpu-cpu provides fbgemm-gpu, and the next "
        "install may put the CUDA build over it",
        installation.pip(f"install --no-deps {shim}"),
    )


def check_abi(installation: Installation) -> Fault | None:
    """fbgemm 1.N is built against torch 2.(N + 5) and loads with no other."""
    torch_minor = _minor(installation.versions.get("torch"))
    fbgemm_minor = _minor(installation.fbgemm)
    if torch_minor is None or fbgemm_minor is None:
        return None
    if torch_minor == fbgemm_minor + 5:
        return None
    torch = installation.versions["torch"]
    repair = installation.pip(f"install torch=={TESTED['torch']}")
    return Fault(
        f"fbgemm {installation.fbgemm} is built for torch 2.{fbgemm_minor + 5}, "
        f"but torch is {torch}",
        f"{repair}; {installation.reinstall_fbgemm()}",
    )


def check_versions(installation: Installation) -> Fault | None:
    """torch and torchrec as tested; torchmetrics as torchrec requires."""
    wanted = {
        "torch": TESTED["torch"],
        "torchrec": TESTED["torchrec"],
        "torchmetrics": TORCHMETRICS,
    }
    if not installation.wants_train:
        # Any torch will do, if there is one.
        wanted = {} if "torch" in installation.versions else {"torch": TESTED["torch"]}
    wrong = {}
    for name, version in wanted.items():
        installed = installation.versions.get(name, "absent")
        # A patch release of the same minor fits; torchmetrics has one that does.
        length = 3 if name == "torchmetrics" else 2
        given = installed.partition("+")[0].split(".")
        if given[:length] != version.split(".")[:length]:
            wrong[name] = f"{name} is {installed}, tested is {version}"
    if not wrong:
        return None
    pins = " ".join(f"{name}=={wanted[name]}" for name in wrong)
    return Fault("; ".join(wrong.values()), installation.pip(f"install {pins}"))


def check_project(installation: Installation) -> Fault | None:
    """The project is installed, and torchx finds its component."""
    force = "--force-reinstall " if installation.root is None else ""
    mend = installation.install_self(options=f"--no-deps {force}")
    if "sgrec-torchrec" not in installation.versions:
        return Fault("sgrec_torchrec itself is not installed", mend)
    if "torchx" not in installation.versions and not installation.wants_train:
        return None
    name, module = COMPONENT
    found = installation.components.get(name)
    if found == module:
        return None
    return Fault(
        f"torchx takes {name} from {found or 'its own components'}, so "
        "`torchx run dist.ddp ... sgrec_torchrec/train.py` is refused",
        mend,
    )


def check_imports(installation: Installation) -> Fault | None:
    """torch, fbgemm and torchrec load and compute."""
    for name, error in installation.import_errors.items():
        if name != "torch" and not installation.wants_train:
            continue
        if name == "fbgemm":
            mend = installation.reinstall_fbgemm()
        else:
            pin = f"{name}=={TESTED[name]}"
            mend = installation.pip(f"install --force-reinstall --no-deps {pin}")
        return Fault(f"{name} does not load: {error}", mend)
    return None


CHECKS: tuple[Callable[[Installation], Fault | None], ...] = (
    check_python,
    check_versions,
    check_abi,
    check_fbgemm_builds,
    check_shim,
    check_project,
)


def find_faults(installation: Installation) -> list[Fault]:
    """All faults, the most basic first; imports only where nothing else explains."""
    faults = [fault for check in CHECKS if (fault := check(installation)) is not None]
    unexplained = None if faults else check_imports(installation)
    return [unexplained] if unexplained is not None else faults


def describe(installation: Installation) -> str:
    """The triple, the device and the extras, as lines of text."""
    major, minor = installation.python
    lines = [f"python     {major}.{minor}  ({installation.executable})"]
    builds = {
        "torch": installation.versions.get("torch"),
        "torchrec": installation.versions.get("torchrec"),
        "fbgemm": installation.fbgemm,
    }
    for name, version in builds.items():
        lines.append(f"{name:10} {version or 'absent'}  (tested: {TESTED[name]})")
    lines.append(f"device     {installation.device}")
    for extra, (packages, gives) in EXTRAS.items():
        missing = [name for name in packages if name not in installation.versions]
        state = "there" if not missing else "absent"
        lines.append(f"[{extra}]  {state}: {gives}")
        if missing:
            lines.append(f"    to add it: {installation.install_self(extra)}")
    return "\n".join(lines)


def inspect_installation() -> Installation:
    """Look at the environment that runs this. Imports torch in a process of its own."""
    folder = Path(__file__).resolve().parents[1]
    # Of a wheel this is site-packages, where all else is installed too.
    root = folder if (folder / "pyproject.toml").is_file() else None
    # A build leaves metadata in the checkout too, which python finds when started
    # there, and torchx, started from .venv/bin, does not.
    installed = [path for path in sys.path if Path(path).resolve() != root]
    versions = {}
    components = {}
    origin = None
    for distribution in importlib.metadata.distributions(path=installed):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        versions[name] = distribution.version
        points = distribution.entry_points.select(group="torchx.components")
        components.update({point.name: point.value for point in points})
        if name == "sgrec-torchrec":
            origin = _origin(distribution)
    probe = _probe()
    return Installation(
        executable=sys.executable,
        python=sys.version_info[:2],
        root=root,
        versions=versions,
        components=components,
        has_driver=_has_driver(),
        torch_cuda=probe["cuda"],
        device=probe["device"],
        import_errors=probe["errors"],
        origin=origin,
        shim=shim if (shim := Path(sys.prefix, SHIM)).is_dir() else None,
    )


def run() -> int:
    """Print the report; 0 if all is well, 1 if something is broken."""
    installation = inspect_installation()
    print(describe(installation))
    faults = find_faults(installation)
    for fault in faults:
        print(f"\nBROKEN: {fault.what}\n  mend: {fault.mend}")
    print("\nall is well" if not faults else f"\n{len(faults)} broken")
    return 1 if faults else 0


def _origin(distribution: importlib.metadata.Distribution) -> str | None:
    """The file that pip notes as its source, if it is there."""
    url = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
    path = Path(urllib.request.url2pathname(urllib.parse.urlparse(url).path))
    return str(path) if url.startswith("file:") and path.exists() else None


def _minor(version: str | None) -> int | None:
    parts = (version or "").split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


def _has_driver() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
    return answer.returncode == 0


def _probe() -> dict[str, typing.Any]:
    """Use the triple in a child process: a wrong build may abort, not raise."""
    child = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
    )
    for line in child.stdout.splitlines():
        if line.startswith("PROBE"):
            found: dict[str, typing.Any] = json.loads(line.removeprefix("PROBE"))
            return found
    tail = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    return {"errors": {"fbgemm": tail[0]}, "cuda": None, "device": "unknown"}


if __name__ == "__main__":
    sys.exit(run())
