"""TRL 1.16's GRPOTrainer: groups instead of a value model, another algorithm. Run in its own environment.

One step here is one generation and the optimizer steps that follow from it, between which a callback does nothing.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from deploy.bench.peers.programs.judging import judge_ids, load_judge
from deploy.bench.peers.programs.task import END, PADDING, Task, read_prompts
from deploy.bench.peers.programs.turns import Turns

GROUP = 8
"""Samples of each prompt."""


class TimedTrainer(GRPOTrainer):
    """The trainer, with a look at the clock around two of its steps."""

    turns: Turns

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        with self.turns.phase("generation"):
            return super()._generate_single_turn(*arguments, **named)

    def _generate_and_score_completions(self, *arguments: Any) -> Any:
        before = self.turns.seconds("generation")
        with self.turns.phase("forward"):
            result = super()._generate_and_score_completions(*arguments)
        self.turns.add("forward", before - self.turns.seconds("generation"))
        return result


class Hold(TrainerCallback):
    """Holds the trainer between two generations."""

    def __init__(self, turns: Turns, task: Task, scores: list[float]) -> None:
        self.turns = turns
        self.every = task.minibatches * task.epochs
        self.scores = scores

    def on_step_begin(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        """Wait, if this optimizer step begins with a generation."""
        if state.global_step % self.every == 0:
            self.turns.wait()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        """Answer, if the next optimizer step begins with a generation."""
        if state.global_step % self.every == 0:
            self.turns.done(score=statistics.fmean(self.scores), kl=None)
            self.scores.clear()


def arguments_of(folder: Path, task: Task) -> GRPOConfig:
    """The trainer's configuration."""
    return GRPOConfig(
        output_dir=str(folder / "left-by-grpo"),
        per_device_train_batch_size=task.minibatch,
        steps_per_generation=task.minibatches,
        num_iterations=task.epochs,
        num_generations=GROUP,
        max_steps=task.steps * task.minibatches * task.epochs,
        max_completion_length=task.response_tokens,
        temperature=1.0,
        beta=0.04,
        epsilon=task.clip_eps,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=task.beta1,
        adam_beta2=task.beta2,
        seed=task.seed,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def main(folder: Path) -> None:
    """Steps as they are asked for."""
    task, turns = Task.read(folder), Turns.of_this_process()
    torch.set_num_threads(task.threads)
    judge, seen = load_judge(folder, task), []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, pad_token=PADDING, padding_side="left"
    )

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [tokenizer(p)["input_ids"] + ids for p, ids in zip(prompts, completion_ids, strict=True)]
        scores: list[float] = judge_ids(judge, torch.tensor(rows)).tolist()
        seen.extend(scores)
        return scores

    trainer = TimedTrainer(
        args=arguments_of(folder, task),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_dict({"prompt": tokenizer.batch_decode(read_prompts(folder))}),
        callbacks=[Hold(turns, task, seen)],
    )
    trainer.turns = turns
    turns.ready(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
