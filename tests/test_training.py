"""Training on a two-layer Llama: the same bytes twice, what was preferred is likelier, an answer is its own call's."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models import adapters
from models.adapters import CARD, WEIGHTS, AdapterRefused
from models.base import Base
from models.rows import Row, canonical
from tests.tiny_base import HERE, QUESTION, ROWS, in_child
from tests.tiny_base import base as base  # a fixture

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def settings(**changes: object):
    from models.dpo import DpoSettings

    defaults = {"threads": 1, "rank": 4, "alpha": 8, "epochs": 2, "batch": 3, "learning_rate": 1e-2}
    return DpoSettings(**{**defaults, **changes})


def train(base: Base, store: Path, rows: list[Row] = ROWS, **changes: object):
    from models import dpo

    return dpo.train(base, rows, settings(**changes), store)


@pytest.fixture(scope="session")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory):
    return train(base, tmp_path_factory.mktemp("store"))


# training


def test_training_lowers_the_loss_from_log_2(trained) -> None:
    assert trained.losses[0] == pytest.approx(math.log(2))
    assert trained.losses[-1] < 0.5
    assert trained.steps == len(trained.losses) == 4


def test_two_processes_make_the_same_adapter(base: Base, trained, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"".join(canonical(row) for row in ROWS[::-1]))
    code = f"""
from pathlib import Path
from models.base import open_base
from models.dpo import DpoSettings, train
from models.rows import parse
rows = [parse(line) for line in Path({str(tmp_path / "rows.jsonl")!r}).read_bytes().splitlines()]
settings = DpoSettings(**{dataclasses.asdict(trained.settings)!r})
print(train(open_base(Path({str(base.path)!r})), rows, settings, Path({str(tmp_path / "store")!r})).sha256)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == trained.sha256


def test_the_seed_and_the_weights_change_the_adapter(base: Base, trained, tmp_path: Path) -> None:
    heavier = [dataclasses.replace(row, weight=3.0 if n else 0.0) for n, row in enumerate(ROWS)]
    assert train(base, tmp_path, heavier).sha256 != trained.sha256
    assert train(base, tmp_path, seed=1).sha256 != trained.sha256


def test_a_pair_of_weight_zero_teaches_nothing(base: Base, tmp_path: Path) -> None:
    nothing = train(base, tmp_path, [dataclasses.replace(row, weight=0.0) for row in ROWS])
    up = [tensor for name, tensor in load_file(nothing.path / WEIGHTS).items() if ".lora_B." in name]
    assert up
    assert not any(tensor.any() for tensor in up)


def test_weight_two_counts_as_much_as_the_pair_twice_in_one_step(base: Base, tmp_path: Path) -> None:
    # The loss is a mean, so twice the pair among four is, up to rounding, weight two with the batch's mean over three.
    twice = train(base, tmp_path, [*ROWS[:3], dataclasses.replace(ROWS[0], id="again")], batch=4, epochs=1)
    once = train(
        base,
        tmp_path,
        [dataclasses.replace(row, weight=(2 if n == 0 else 1) * 3 / 4) for n, row in enumerate(ROWS[:3])],
        batch=3,
        epochs=1,
    )
    left, right = load_file(twice.path / WEIGHTS), load_file(once.path / WEIGHTS)
    assert all(np.allclose(left[name], right[name], atol=1e-5) for name in left)


def test_the_loss_is_trls_own_when_weights_are_one(base: Base, trained, tmp_path: Path) -> None:
    """TRL's computation, in its own batch with padding, is the oracle for the four lines that replace it."""
    import torch
    from datasets import Dataset
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file
    from trl import DPOConfig, DPOTrainer

    from models import dpo
    from models.base import load_model
    from models.chat import Chat

    chat = Chat(base.path)
    pairs = [dpo._encoded(chat, row) for row in ROWS[:3]]
    model = PeftModel.from_pretrained(load_model(base), trained.path)
    theirs = DPOTrainer(
        model=load_model(base),
        args=DPOConfig(output_dir=str(tmp_path), beta=0.1, bf16=False, use_cpu=True, report_to=[], seed=0),
        train_dataset=Dataset.from_list(
            [{"prompt": row.prompt, "chosen": [{"role": "assistant", "content": row.chosen}],
              "rejected": [{"role": "assistant", "content": row.rejected}]} for row in ROWS[:3]]
        ),
        processing_class=chat.tokenizer,
        peft_config=dpo.LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, task_type="CAUSAL_LM"),
    )  # fmt: skip
    set_peft_model_state_dict(theirs.model, load_file(trained.path / "adapter_model.safetensors"))
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = theirs.data_collator([{key: pair[key] for key in keys} for pair in pairs])
    with torch.no_grad():
        expected = theirs.compute_loss(theirs.model, batch)
        with model.disable_adapter():
            for pair in pairs:
                pair["base_margin"] = dpo._margin(model, pair).item()
        trainer = object.__new__(dpo._Trainer)
        trainer.beta = 0.1
        ours = trainer.compute_loss(model, pairs)
    assert ours.item() < 0.6
    assert ours.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_prompt_over_the_limit_is_skipped_and_named(base: Base, tmp_path: Path) -> None:
    long = Row("row-long", [{"role": "user", "content": "a" * 600}], "yes", "no")
    result = train(base, tmp_path, [*ROWS, long])
    assert result.skipped == ("row-long",)
    assert result.rows == len(ROWS)
    with pytest.raises(ValueError, match="0 of 1 rows have a prompt of at most 512 tokens"):
        train(base, tmp_path, [long])


@pytest.mark.parametrize("diverged", [False, True])
def test_what_no_version_can_be_made_of_is_passed_by_the_trainer_and_holds_up_nothing(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverged: bool
) -> None:
    """The same rows would end the process every time, and no later batch would ever be reached."""
    from models import dpo
    from streams import trainer as module
    from streams.dataset import BatchBroken, Dataset
    from streams.settings import Settings
    from tests.bare_shell import KAFKA, ZERO

    def diverge(*_: object, **__: object) -> None:
        raise AdapterRefused("its weights are not finite")

    async def load(*_: object) -> Dataset:
        return Dataset([dataclasses.replace(one, id=f"{n:08x}", prompt=long.prompt) for n, one in enumerate(ROWS)])

    long = Row("row-long", [{"role": "user", "content": "a" * 600}], "yes", "no")
    monkeypatch.setattr(module, "load", load)
    if diverged:
        monkeypatch.setattr(dpo, "train", diverge)
    trainer = module.Trainer(Settings(data=tmp_path, threads=1), KAFKA, lambda name: None)
    trainer.base = base
    batch = type("Batch", (), {"batch": "one", "root": ZERO})()
    with pytest.raises(BatchBroken, match="not finite" if diverged else "rows have a prompt of at most 512 tokens"):
        asyncio.run(trainer._train(None, [batch]))
    trainer.vault.close()


def test_the_card_says_what_the_adapter_was_made_from(base: Base, trained) -> None:
    card = (trained.path / CARD).read_text()
    for fact in (base.sha256, trained.dataset_sha256, '"seed": 0', '"torch"'):
        assert fact in card
    assert str(base.path) not in "".join(path.read_text(errors="replace") for path in trained.path.iterdir())


@pytest.mark.parametrize("point", ["before_step", "in_step"])
def test_killed_in_a_step_training_leaves_nothing_and_the_rerun_is_the_same(
    base: Base, trained, tmp_path: Path, point: str
) -> None:
    from models import dpo

    def die(at: str, step: int) -> None:
        if at == point and step == 2:
            os._exit(75)

    assert in_child(lambda: dpo.train(base, ROWS, trained.settings, tmp_path, step_hook=die)) == 75
    assert adapters.stored(tmp_path) == []
    assert train(base, tmp_path).sha256 == trained.sha256


# generation and evaluation


@pytest.fixture(scope="session")
def generator(base: Base, trained):
    from models.generate import Generator

    generator = Generator(base, threads=1)
    generator.load("new", trained.path)
    return generator


def test_an_answer_depends_on_its_own_call_only(generator) -> None:
    ask = {"messages": QUESTION, "release": "new", "n": 3, "max_tokens": 12, "temperature": 1.0, "seed": 7}
    first = generator.generate(**ask)
    generator.generate(QUESTION, None, n=2, max_tokens=5, seed=1)
    assert generator.generate(**ask) == first
    assert generator.generate(**{**ask, "seed": 8}) != first
    assert generator.generate(**{**ask, "release": None}) != first


def test_streamed_text_is_the_answer(generator) -> None:
    parts: list[str] = []
    (answer,) = generator.generate(QUESTION, "new", max_tokens=40, temperature=1.5, seed=3, on_text=parts.append)
    assert "".join(parts) == answer.text
    assert len(parts) > 1


def test_a_call_can_be_stopped_and_says_so(generator) -> None:
    asked = iter([False, False, True])
    (answer,) = generator.generate(QUESTION, "new", max_tokens=40, temperature=1.5, seed=3, stop=lambda: next(asked))
    assert (answer.finish_reason, answer.tokens) == ("cancelled", 2)


def test_what_was_preferred_is_likelier_than_before(generator) -> None:
    prompt = generator.chat.prompt_ids([{"role": "user", "content": "Say 9"}])
    gained = {
        text: sum(generator.logprobs(prompt, generator.chat.answer_ids(text), "new"))
        - sum(generator.logprobs(prompt, generator.chat.answer_ids(text), None))
        for text in (ROWS[0].chosen, ROWS[0].rejected)
    }
    assert gained[ROWS[0].chosen] > gained[ROWS[0].rejected] + 5


def test_a_release_is_pinned_while_others_come_and_go(base: Base, trained) -> None:
    import threading

    from models.generate import Generator

    generator = Generator(base, threads=1)
    generator.load("new", trained.path)
    expected = {name: generator.generate(QUESTION, name, max_tokens=30, seed=5) for name in (None, "new")}
    got: list[tuple[str | None, object]] = []

    def ask(name: str | None) -> None:
        got.extend((name, generator.generate(QUESTION, name, max_tokens=30, seed=5)) for _ in range(5))

    threads = [threading.Thread(target=ask, args=(name,)) for name in (None, "new", None, "new")]
    for thread in threads:
        thread.start()
    for n in range(10):
        generator.load(f"other-{n}", trained.path)
        generator.unload(f"other-{n}")
    for thread in threads:
        thread.join()
    assert len(got) == 20
    assert all(answer == expected[name] for name, answer in got)
    generator.unload("new")
    with pytest.raises(KeyError):
        generator.generate(QUESTION, "new")
    assert generator.generate(QUESTION, None, max_tokens=30, seed=5) == expected[None]


def test_merged_weights_say_what_pefts_layers_say(base: Base, trained, generator) -> None:
    import torch
    from peft import PeftModel

    from models.base import load_model
    from models.score import answer_logprobs

    model = PeftModel.from_pretrained(load_model(base), trained.path)
    prompt, answer = generator.chat.prompt_ids(QUESTION), generator.chat.answer_ids("abab")
    with torch.no_grad():
        theirs = answer_logprobs(model, prompt, answer).tolist()
    assert generator.logprobs(prompt, answer, "new") == pytest.approx(theirs, abs=1e-4)


def test_an_adapter_of_another_base_is_not_worn(trained, tmp_path: Path) -> None:
    from models.generate import Generator
    from tests import tiny_llama

    with pytest.raises(AdapterRefused, match="another base"):
        Generator(tiny_llama.build(tmp_path / "other", seed=1), threads=1).load("new", trained.path)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"n": 99}, {"max_tokens": 10**6}, {"temperature": -1.0}, {"top_p": 0.0}, {"n": 2, "on_text": print}],
)
def test_an_input_beyond_the_limits_is_refused(generator, wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"between|at most"):
        generator.generate(QUESTION, None, **wrong)
    with pytest.raises(ValueError, match="prompt has"):
        generator.generate([{"role": "user", "content": "a" * 3000}], None)


def test_the_evaluation_sees_what_was_learned_and_the_base_is_neutral(base: Base, trained) -> None:
    from models.evaluate import EvaluationSettings, evaluate

    quick = EvaluationSettings(threads=1, samples=1, answer_tokens=8, greedy_tokens=8)
    held_back = [dataclasses.replace(row, id=f"held-{row.id}", prompt=QUESTION) for row in ROWS]
    before, after = evaluate(base, None, held_back, quick), evaluate(base, trained.path, held_back, quick)
    assert (before.accuracy, before.margin, before.drift) == (0.5, 0.0, 0.0)
    assert after.accuracy == 1.0
    assert after.margin > 1
    assert after.drift > 0
    assert before.nats_per_token == before.base_nats_per_token == after.base_nats_per_token
    assert (after.pairs, after.safety_prompts, after.answers) == (6, 12, 4)
    assert evaluate(base, trained.path, held_back, quick) == after
