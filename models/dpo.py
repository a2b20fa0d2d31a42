"""DPO: preference pairs -> an adapter, the same bytes every time.

Direct Preference Optimisation (Rafailov et al., arXiv:2305.18290) on LoRA matrices (Hu et al., arXiv:2106.09685), run
by TRL's DPOTrainer (https://huggingface.co/docs/trl/dpo_trainer). Five choices differ from TRL's defaults:

- The ids are ours (`models.chat`), since TRL renders a conversation as one string and so lets text end its own turn.
- Training always begins at the base, which is also the reference: its log-probabilities are computed once.
- The loss is written out in four lines (`compute_loss`; TRL's own is the test's oracle), because TRL has no weights for
  pairs: ours multiplies a pair's loss, so weight 2 counts as much as the pair twice in one step. A pass holds one pair,
  without padding.
- The order is a hash of (seed, epoch, id): rows may arrive in any order.
- Float32, no dropout, deterministic kernels, a fixed number of threads, no loader processes. Two processes on one class
  of machine then agree to the bit; another count of threads sums in another order and does not.

The process is changed: seeds, thread count and the deterministic mode stay set. The caller sets HF_HUB_OFFLINE or
HF_HUB_DISABLE_TELEMETRY before importing this, or TRL calls home.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from models import adapters
from models.base import Base, load_model
from models.chat import Chat
from models.folders import no_crash
from models.merge import base_weights
from models.rows import Row, dataset_sha256, in_order
from models.score import answer_logprobs

PROMPT_TOKENS_MAX = 512  # with the longest answers one pass of SmolLM2 peaks at about 5 GB
ANSWER_TOKENS_MAX = 256
ROWS_MAX = 4096  # over an hour on two cores; a batch is small on purpose

OnStep = Callable[[int, int, float], None]  # step, steps, loss
StepHook = Callable[[str, int], None]  # "before_step" or "in_step" (gradients made, weights not changed), step


@dataclass(frozen=True)
class DpoSettings:
    """What, with the base and the rows, decides every bit of the adapter.

    The defaults come from a trial on SmolLM2: 39 pairs of a short answer preferred to a long one of the model's own, 16
    held back, seed 0. Ten steps at 1e-4 took the held-back accuracy from 0.5 to 1.0 and the mean answer from 48 tokens
    (the limit) to 22, and cost 0.3 % on plain text. At 5e-5 the answers stayed long; at 2e-4 a fifth of their word
    triples were repeats; two passes over the rows gained nothing that one at a batch of 4 did not.
    """

    seed: int = 0
    threads: int = 2
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    beta: float = 0.1
    epochs: int = 1
    batch: int = 4
    gradient_norm_max: float = 1.0


class Untrainable(ValueError):
    """No version can be made of these rows, however often it is tried."""


@dataclass(frozen=True)
class Trained:
    """An adapter in the store, and what it was made from."""

    sha256: str
    path: Path
    losses: tuple[float, ...]
    steps: int
    dataset_sha256: str
    base_sha256: str
    rows: int
    skipped: tuple[str, ...]  # ids of rows whose prompt is over the limit
    settings: DpoSettings


def no_step(step: int, steps: int, loss: float) -> None:
    """The default listener."""


def no_hook(point: str, step: int) -> None:
    """The default hook. Fault tests hand in one that kills the process."""


def train(
    base: Base,
    rows: Sequence[Row],
    settings: DpoSettings,
    out_store: Path,
    on_step: OnStep = no_step,
    *,
    provenance: Mapping[str, object] | None = None,
    step_hook: StepHook = no_hook,
    crash_point: Callable[[str], None] = no_crash,
) -> Trained:
    """Train on `rows` from the base and publish into `out_store`.

    `provenance` goes into the card beside base, dataset, settings and versions. Raises Untrainable when no row can be
    used, AdapterRefused when the training diverged; the same rows do so every time.
    """
    _fix_the_machine(settings)
    rows = in_order(rows)
    chat = Chat(base.path)
    encoded = [_encoded(chat, row) for row in rows]
    used = [pair for pair in encoded if len(pair["prompt_ids"]) <= PROMPT_TOKENS_MAX]
    if not 0 < len(used) <= ROWS_MAX:
        raise Untrainable(
            f"{len(used)} of {len(rows)} rows have a prompt of at most {PROMPT_TOKENS_MAX} tokens; 1 to {ROWS_MAX} are "
            "needed"
        )
    steps = math.ceil(len(used) * settings.epochs / settings.batch)
    losses: list[float] = []
    model = load_model(base)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(
            model=model,
            args=_arguments(settings, scratch),
            train_dataset=Dataset.from_list(used),
            data_collator=list,
            processing_class=chat.tokenizer,
            peft_config=LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=0.0,
                # Every linear layer but the last. PEFT's "all-linear" spells them in a way that depends on their count.
                target_modules=sorted({name.rpartition(".")[2] for name in base_weights(model)}),
                task_type=TaskType.CAUSAL_LM,
            ),
            callbacks=[_Listener(steps, losses, on_step, step_hook)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if len(losses) != steps:
        raise RuntimeError(f"{len(losses)} steps were run, not {steps}")
    digest = dataset_sha256(rows)
    card = {
        **(provenance or {}),
        "base_model": base.id,
        "dataset_sha256": digest,
        "rows": len(used),
        "settings": dataclasses.asdict(settings),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    sha256 = adapters.write(
        out_store, lambda folder: trainer.model.save_pretrained(folder, save_embedding_layers=False), card, crash_point
    )
    return Trained(
        sha256=sha256,
        path=out_store / sha256,
        losses=tuple(losses),
        steps=steps,
        dataset_sha256=digest,
        base_sha256=base.sha256,
        rows=len(used),
        skipped=tuple(pair["id"] for pair in encoded if len(pair["prompt_ids"]) > PROMPT_TOKENS_MAX),
        settings=settings,
    )


def _fix_the_machine(settings: DpoSettings) -> None:
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, and a fifth of the time
    set_seed(settings.seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _encoded(chat: Chat, row: Row) -> dict[str, Any]:
    # An answer that is cut has no end of turn: the model must not learn to stop there.
    return {
        "id": row.id,
        "prompt_ids": chat.prompt_ids(row.prompt),
        "chosen_ids": chat.answer_ids(row.chosen)[:ANSWER_TOKENS_MAX],
        "rejected_ids": chat.answer_ids(row.rejected)[:ANSWER_TOKENS_MAX],
        "weight": float(row.weight),
    }


def _arguments(settings: DpoSettings, scratch: str) -> DPOConfig:
    return DPOConfig(
        output_dir=scratch,
        beta=settings.beta,
        max_length=PROMPT_TOKENS_MAX + ANSWER_TOKENS_MAX,
        precompute_ref_log_probs=True,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=settings.gradient_norm_max,
        optim="adamw_torch",
        weight_decay=0.0,
        # The rows come in order and repeated for every epoch, see `_precompute_ref_logps`.
        num_train_epochs=settings.epochs,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="no",
        report_to=[],
        push_to_hub=False,
        disable_tqdm=True,
    )


class _Trainer(DPOTrainer):
    """DPOTrainer for rows that come with their ids, their order and their weight."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset  # already ids

    @torch.no_grad()
    def _precompute_ref_logps(self, dataset: Dataset, *_: object) -> Dataset:
        """Add the base's margin to each row, and lay the rows out in the order they are trained on."""
        with self.model.disable_adapter():
            margins = [_margin(self.model, row).item() for row in dataset]
        seed, epochs = self.args.seed, int(self.args.num_train_epochs)
        self.args.num_train_epochs = 1
        order = [i for epoch in range(epochs) for i in _shuffled(dataset["id"], seed, epoch)]
        return dataset.add_column("base_margin", margins).select(order)

    def compute_loss(self, model: nn.Module, inputs: list[dict], *_: object, **__: object) -> Tensor:
        """Mean of weight x -log sigmoid(beta x (margin - the base's margin)): equation 7 of the paper."""
        losses = [
            pair["weight"] * -logsigmoid(self.beta * (_margin(model, pair) - pair["base_margin"])) for pair in inputs
        ]
        return torch.stack(losses).mean()


def _margin(model: nn.Module, pair: Mapping[str, list[int]]) -> Tensor:
    """log p(chosen) - log p(rejected)."""
    chosen, rejected = (
        answer_logprobs(model, pair["prompt_ids"], pair[side]).sum() for side in ("chosen_ids", "rejected_ids")
    )
    return chosen - rejected


class _Listener(TrainerCallback):
    def __init__(self, steps: int, losses: list[float], on_step: OnStep, step_hook: StepHook) -> None:
        self.steps, self.losses, self.on_step, self.step_hook = steps, losses, on_step, step_hook

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.step_hook("before_step", state.global_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.step_hook("in_step", state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.on_step(state.global_step, self.steps, float(logs["loss"]))


def _shuffled(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Places of `ids` in an order that depends on nothing but seed, epoch and the ids themselves."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}/{epoch}/{ids[i]}".encode()).digest())
