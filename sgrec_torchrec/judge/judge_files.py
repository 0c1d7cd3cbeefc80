"""A trained judge on disk: what it is, and that no byte of it has changed."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sgrec_torchrec.files.atomic import atomic_file, sha256_file
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.run_folder import JUDGE_MANIFEST
from sgrec_torchrec.files.sealed_json import Fields, naming, read_sealed, write_sealed
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.prompt import PromptSettings
from sgrec_torchrec.logs.judged_users import id_hashes

FORMAT_VERSION = 3
FACTS: Fields = {
    "judge_version": str,
    "prompt_version": str,
    "prompt": dict,
    "aspects": list,
    "form": str,
    "sha256": dict,
}
"""What is read of the manifest."""
MODEL = "model"
NETWORK = "aggregator.safetensors"
WEIGHTS_ADAPTER = "weights_adapter"
LEARNED = "learned.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeFiles:
    """Where the parts of a judge lie, and the names that rewards carry."""

    folder: Path
    judge_version: str
    prompt_version: str
    prompt: PromptSettings
    aspects: tuple[str, ...]
    form: str
    """How Part B weighs: network or llm."""

    @property
    def model(self) -> Path:
        """The merged language model of Part A."""
        return self.folder / MODEL

    @property
    def network(self) -> Path:
        """Part B's small form."""
        return self.folder / NETWORK

    @property
    def weights_adapter(self) -> Path:
        """Part B's other form: a LoRA over ``model``."""
        return self.folder / WEIGHTS_ADAPTER

    def check_unlearned(self, user_ids: Sequence[str]) -> None:
        """The judge has read what these users chose next: it must not judge them.

        Raises:
            ValueError: naming the first user that it has learned from.
        """
        hashes = id_hashes(user_ids)
        learned = load_file(self.folder / LEARNED)["id_hash"]
        known = np.flatnonzero(np.isin(hashes, learned))
        if len(known):
            raise ValueError(
                f"the judge in {self.folder} has learned from user "
                f"{user_ids[known[0]]!r}, and has read what is to be judged: train it "
                "on labels of this run, or make the candidates with its log.seed"
            )


def write_judge(
    folder: Path,
    reader: CaseReader,
    form: str,
    settings: dict[str, Any],
    learned: Iterable[str],
) -> None:
    """Name the judge by its weights, so that two judges' rewards can be told apart.

    Args:
        learned: ids of the users that it has learned from; kept as sorted 64-bit
            hashes, 8 bytes each.
    """
    hashes = np.unique(id_hashes(learned))
    with atomic_file(folder / LEARNED) as temporary:
        save_file({"id_hash": hashes}, temporary)
    sums = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in _weight_files(folder, form)
    }
    facts = {
        "format_version": FORMAT_VERSION,
        "judge_version": content_key(sums)[:12],
        "prompt_version": reader.prompt_version,
        "prompt": asdict(reader.settings),
        "aspects": [aspect.name for aspect in reader.aspects],
        "form": form,
        "sha256": sums,
        "settings": settings,
    }
    write_sealed(folder / JUDGE_MANIFEST, facts)


def open_judge(folder: Path) -> JudgeFiles:
    """The judge in ``folder``; reads its weights once (about 1 GB/s) to check them.

    Raises:
        FileNotFoundError: naming what is not there.
        ValueError: where a file changed, or is of another version.
    """
    path = folder / JUDGE_MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: train one with `sgrec judge train`"
        )
    mend = "train the judge again"
    facts = read_sealed(path, FACTS, format_version=FORMAT_VERSION, mend=mend)
    with naming(path, mend):
        judge = JudgeFiles(
            folder=folder,
            judge_version=facts["judge_version"],
            prompt_version=facts["prompt_version"],
            prompt=PromptSettings(**facts["prompt"]),
            aspects=tuple(facts["aspects"]),
            form=facts["form"],
        )
    for name, digest in sorted(facts["sha256"].items()):
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {mend}")
        if sha256_file(file) != digest:
            raise ValueError(f"{file} has changed since {path}: {mend}")
    return judge


def _weight_files(folder: Path, form: str) -> list[Path]:
    part_b = (
        [folder / NETWORK]
        if form == "network"
        else sorted((folder / WEIGHTS_ADAPTER).glob("*.safetensors"))
    )
    # Its tokenizer, template and settings decide what it says as much as its weights.
    model = [path for path in sorted((folder / MODEL).rglob("*")) if path.is_file()]
    return [*model, *part_b, folder / LEARNED]
