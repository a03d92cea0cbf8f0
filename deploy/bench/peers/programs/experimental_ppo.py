"""TRL 1.9.2's experimental PPOTrainer, whose value model is a network of its own. Run in its own environment.

Its loop cannot be stepped from outside: a callback holds it between two steps. It tells no times either, so two
functions of its module are replaced by ones that look at the clock.
"""

import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from deploy.bench.peers.programs.judging import load_judge
from deploy.bench.peers.programs.task import END, PADDING, Task, read_prompts
from deploy.bench.peers.programs.turns import Turns


class Clock(TrainerCallback):
    """Holds the trainer between steps, and takes the times within one."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.generate, self.forward = ppo_trainer.batch_generation, ppo_trainer.forward
        self.generated_at: float | None = None
        ppo_trainer.batch_generation, ppo_trainer.forward = self.timed_generation, self.timed_forward

    def timed_generation(self, *arguments: Any) -> Any:
        """In place of `batch_generation`."""
        with self.turns.phase("generation"):
            result = self.generate(*arguments)
        self.generated_at = time.perf_counter()
        return result

    def timed_forward(self, *arguments: Any) -> Any:
        """In place of `forward`: the first one with gradients begins the update."""
        if torch.is_grad_enabled() and self.generated_at is not None:
            self.turns.add("forward", time.perf_counter() - self.generated_at)
            self.generated_at = None
        return self.forward(*arguments)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Hold before the first step."""
        self.turns.wait()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        """Answer, and hold."""
        log = state.log_history[-1]
        self.turns.done(score=log["objective/scores"], kl=log["objective/kl"])
        self.turns.wait()


def arguments_of(folder: Path, task: Task) -> PPOConfig:
    """The trainer's configuration."""
    return PPOConfig(
        output_dir=str(folder / "left-by-ppo"),
        per_device_train_batch_size=task.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=task.minibatches,
        num_ppo_epochs=task.epochs,
        local_rollout_forward_batch_size=task.batch,
        total_episodes=task.batch * task.steps,
        response_length=task.response_tokens,
        temperature=1.0,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=task.beta1,
        adam_beta2=task.beta2,
        kl_coef=task.kl_coef,
        cliprange=task.clip_eps,
        cliprange_value=task.value_clip_eps,
        vf_coef=task.value_coef,
        gamma=task.gamma,
        lam=task.gae_lambda,
        seed=task.seed,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def main(folder: Path, value_model: str) -> None:
    """Steps as they are asked for, with `value` or `small_value` of the work folder as value model."""
    task, turns = Task.read(folder), Turns.of_this_process()
    torch.set_num_threads(task.threads)
    trainer = PPOTrainer(
        args=arguments_of(folder, task),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, pad_token=PADDING, padding_side="left"
        ),
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        reward_model=load_judge(folder, task),
        value_model=AutoModelForSequenceClassification.from_pretrained(folder / value_model),
        train_dataset=datasets.Dataset.from_dict({"input_ids": read_prompts(folder)}),
        callbacks=[Clock(turns)],
    )
    turns.ready(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
