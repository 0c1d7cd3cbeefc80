"""Labels -> a trained judge, stage by stage, and what each stage adds.

    JUDGE/before.safetensors       probabilities of the model as it comes
    JUDGE/sft/, JUDGE/grpo/        adapters, each with its probabilities and log
    JUDGE/model/                   the judge of aspects, merged: any backend loads it
    JUDGE/aggregator.safetensors   Part B
    JUDGE/learned.safetensors      hashes of the users that it may not judge
    JUDGE/judge.json               what the judge is: model, prompt, settings, sums
    JUDGE/report.json              accuracy, calibration, pair AUC by stage

A stage whose files are there is not done again, so training goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.atomic import (
    atomic_file,
    atomic_folder,
    write_json,
)
from sgrec_torchrec.files.run_folder import JUDGE_REPORT
from sgrec_torchrec.files.sealed_json import naming, without_seal, write_sealed
from sgrec_torchrec.judge.ask.aspects import LEVELS
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import rating
from sgrec_torchrec.judge.backends.language_model import load_model, model_folder
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend
from sgrec_torchrec.judge.judge_files import (
    MODEL,
    NETWORK,
    WEIGHTS_ADAPTER,
    open_judge,
    write_judge,
)
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.judge.learn.metrics import Judged, baseline_aucs, measure
from sgrec_torchrec.judge.learn.train_aspects import (
    Figures,
    reinforce,
    supervise,
    with_lora,
)
from sgrec_torchrec.judge.learn.user_weights import (
    reinforce_weights,
    save_network,
    train_network,
    weigher,
)
from sgrec_torchrec.schema import Float32Array

BEFORE, SFT, GRPO = "before", "sft", "grpo"
PROBABILITIES = "probabilities.safetensors"
LOG = "log.json"
INPUTS = "inputs.json"
PART_A = ("model", "max_held_out", "max_weight_cases")
ASPECTS = (
    *("lora_rank", "trained_share", "batch_size", "sft_epochs", "sft_updates"),
    *("sft_lr", "grpo_steps", "grpo_lr", "num_draws", "kl_weight", "bf16", "seed"),
)
"""Beside ``PART_A``, the settings that finished stages depend on."""
Baseline = Callable[[Judged], Float32Array]


def train_judge(
    reader: CaseReader,
    labels: Sequence[LabelledCase],
    settings: JudgeConfig,
    out: Path,
    baselines: dict[str, Baseline],
) -> dict[str, Any]:
    """All stages; writes what the module says and returns the report.

    Raises:
        ValueError: where no case is to learn from, or none is held out.
    """
    learn = [one for one in labels if not one.is_held_out]
    held_out = _spread(
        [one for one in labels if one.is_held_out], settings.max_held_out
    )
    if not learn or not held_out:
        raise ValueError(
            f"{len(learn)} cases to learn from and {len(held_out)} held out: the judge "
            "needs both; give labels of more users"
        )
    for some, of in ((learn, "to learn from"), (held_out, "held out")):
        if not any(one.preferences for one in some):
            raise ValueError(
                f"no case {of} has a preferred pair: give pair-wise labels"
            )
    inputs = _checked_inputs(out, reader, labels, settings)
    stage = _Stages(
        reader=reader, learn=learn, held_out=held_out, settings=settings, out=out
    )
    probabilities = {
        BEFORE: stage.before(inputs),
        SFT: stage.supervised(),
        GRPO: stage.reinforced(),
    }
    part_b_log = _learn_weights(stage)
    users = {reader.split.user_ids[one.case.user] for one in learn}
    write_judge(out, reader, settings.form, asdict(settings), users)
    weigh = weigher(open_judge(out), reader)
    weights = weigh([one.case for one in held_out])
    report = _report(reader, held_out, probabilities, weights, baselines)
    report["logs"] = {name: stage.log(name) for name in (SFT, GRPO)}
    report["logs"]["weights"] = part_b_log
    write_sealed(out / JUDGE_REPORT, report)
    return report


def _checked_inputs(
    out: Path,
    reader: CaseReader,
    labels: Sequence[LabelledCase],
    settings: JudgeConfig,
) -> dict[str, Any]:
    """What this judge is made of; finished stages serve nothing else."""
    digest = hashlib.sha256()
    for one in labels:
        plain = (one.case, one.sources, one.evidence, one.preferences, one.is_held_out)
        digest.update(repr(plain).encode())
        digest.update(one.levels_CA.tobytes())
    inputs = {
        "labels": digest.hexdigest(),
        "prompt_version": reader.prompt_version,
        # Part B is made anew each time: its settings may change.
        "settings": {
            **{name: getattr(settings, name) for name in PART_A},
            "aspects": {name: getattr(settings, name) for name in ASPECTS},
        },
    }
    path = out / INPUTS
    if path.is_file():
        with naming(path, "train into another folder, or delete this one"):
            earlier = without_seal(json.loads(path.read_bytes()))
            changed = [name for name in inputs if earlier.get(name) != inputs[name]]
        if changed:
            raise ValueError(
                f"{out} holds a judge of other {', '.join(changed)}: train into "
                "another folder, or delete this one"
            )
    return inputs


def _learn_weights(stage: "_Stages") -> list[Figures]:
    """Part B over the finished Part A."""
    judged, settings, out = stage.to_weigh(), stage.settings, stage.out
    if settings.form == "network":
        network, log = train_network(judged, stage.reader, settings)
        with atomic_file(out / NETWORK) as temporary:
            save_network(network, temporary)
        return log
    folder = out / WEIGHTS_ADAPTER
    if not folder.is_dir():
        model, tokenizer = load_model(str(out / MODEL))
        model = with_lora(model, settings)
        log = reinforce_weights(
            model, Chat.of(tokenizer), judged, stage.reader, settings
        )
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            write_json(temporary / LOG, log)
    return stage.log(WEIGHTS_ADAPTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """The stages of Part A; each makes its folder unless it is there."""

    reader: CaseReader
    learn: list[LabelledCase]
    held_out: list[LabelledCase]
    settings: JudgeConfig
    out: Path

    def before(self, inputs: dict[str, Any]) -> list[Float32Array]:
        """What the model says as it comes; notes what this judge is made of."""
        folder = self.out / BEFORE
        if not folder.is_dir():
            model, chat = self._base()
            # Only now: a model that cannot be read leaves nothing behind.
            write_sealed(self.out / INPUTS, inputs)
            with atomic_folder(folder) as temporary:
                self._keep(
                    temporary / PROBABILITIES, model, chat, self.held_out, BEFORE
                )
        return _load(folder / PROBABILITIES)

    def supervised(self) -> list[Float32Array]:
        """After learning from labels."""
        folder = self.out / SFT
        if not folder.is_dir():
            model, chat = self._base()
            model = with_lora(model, self.settings)
            log = supervise(model, chat, self.learn, self.reader, self.settings)
            self._finish(folder, model, chat, log)
        return _load(folder / PROBABILITIES)

    def reinforced(self) -> list[Float32Array]:
        """After GRPO; the merged model is the judge."""
        folder = self.out / GRPO
        if not folder.is_dir():
            model, chat = self._base()
            model = _with_adapter(model, self.out / SFT, trains=True)
            log = reinforce(
                model,
                chat,
                self.learn,
                self.reader,
                self.settings,
                self.out / SFT,
            )
            model.delete_adapter("reference")
            self._finish(folder, model, chat, log)
        if not (self.out / MODEL).is_dir():
            model, chat = self._base()
            merged = _with_adapter(model, folder, trains=False).merge_and_unload()
            with atomic_folder(self.out / MODEL) as temporary:
                merged.save_pretrained(temporary)
                chat.tokenizer.save_pretrained(temporary)
        return _load(folder / PROBABILITIES)

    def to_weigh(self) -> list[Judged]:
        """Cases to learn from, as the finished Part A scores them."""
        cases = _spread(self.learn, self.settings.max_weight_cases)
        path = self.out / "to_weigh.safetensors"
        if not path.is_file():
            model, tokenizer = load_model(str(self.out / MODEL))
            with atomic_file(path) as temporary:
                chat = Chat.of(tokenizer)
                self._keep(temporary, model, chat, cases, "weights")
        equal = np.full(len(self.reader.aspects), 1 / len(self.reader.aspects))
        return [
            Judged(case=one, probability_CAS=said, weight_A=equal.astype(np.float32))
            for one, said in zip(cases, _load(path), strict=True)
        ]

    def log(self, name: str) -> list[Figures]:
        """Figures by update of a stage."""
        read: list[Figures] = json.loads((self.out / name / LOG).read_text())
        return read

    def _base(self) -> tuple[Any, Chat]:
        model, tokenizer = load_model(model_folder(self.settings.model))
        return model, Chat.of(tokenizer)

    def _finish(self, folder: Path, model: Any, chat: Chat, log: list[Figures]) -> None:
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            path = temporary / PROBABILITIES
            self._keep(path, model, chat, self.held_out, folder.name)
            write_json(temporary / LOG, log)

    def _keep(
        self,
        path: Path,
        model: Any,
        chat: Chat,
        cases: Sequence[LabelledCase],
        stage: str,
    ) -> None:
        backend = TransformersBackend(
            model, chat.tokenizer, "training", bf16=self.settings.bf16
        )
        asked = rating(self.reader.aspects)
        said = {
            f"{place:06d}": torch.from_numpy(
                backend.rate([self.reader.prompt(one.case, asked)], LEVELS)[0]
            )
            for place, one in enumerate(
                progress(cases, description=f"judging, {stage}", unit="case")
            )
        }
        save_file(said, path)


def _with_adapter(model: Any, folder: Path, *, trains: bool) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(
        model, str(folder), is_trainable=trains, use_safetensors=True
    )


def _load(path: Path) -> list[Float32Array]:
    tensors = load_file(path)
    return [tensors[name].numpy() for name in sorted(tensors)]


def _spread(cases: list[LabelledCase], count: int) -> list[LabelledCase]:
    """At most ``count`` of the cases, evenly over their order (by user)."""
    if len(cases) <= count:
        return cases
    return [cases[place * len(cases) // count] for place in range(count)]


def _report(
    reader: CaseReader,
    held_out: list[LabelledCase],
    probabilities: dict[str, list[Float32Array]],
    weights: Float32Array,
    baselines: dict[str, Baseline],
) -> dict[str, Any]:
    equal = np.full_like(weights, 1 / weights.shape[1])
    stages = {name: (said, equal) for name, said in probabilities.items()}
    stages["grpo + weights"] = (probabilities[GRPO], weights)
    report: dict[str, Any] = {"stages": {}}
    judged: list[Judged] = []
    for name, (said, weight_EA) in stages.items():
        judged = [
            Judged(case=one, probability_CAS=said_one, weight_A=weight_A)
            for one, said_one, weight_A in zip(held_out, said, weight_EA, strict=True)
        ]
        report["stages"][name] = measure(judged, reader.aspects)
    report["baselines"] = baseline_aucs(judged, baselines)
    names = [aspect.name for aspect in reader.aspects]
    report["mean_weights"] = dict(
        zip(names, weights.mean(0).round(4).tolist(), strict=True)
    )
    return report
