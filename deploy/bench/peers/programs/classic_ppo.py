"""TRL 0.11.4's PPOTrainer, the algorithm that is ours too: a value head on the policy. Run in its own environment."""

import sys
from pathlib import Path

import torch
import transformers
import trl
from torch.optim import AdamW
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from deploy.bench.peers.programs.judging import judge_ids, load_judge
from deploy.bench.peers.programs.task import END, PADDING, Task, read_prompts
from deploy.bench.peers.programs.turns import Turns


def build_trainer(folder: Path, task: Task) -> PPOTrainer:
    """The trainer; its value head begins at zero as everybody's."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder / "policy"), summary_dropout_prob=0.0)
    torch.nn.init.zeros_(model.v_head.summary.weight)
    torch.nn.init.zeros_(model.v_head.summary.bias)
    config = PPOConfig(
        batch_size=task.batch,
        mini_batch_size=task.minibatch,
        ppo_epochs=task.epochs,
        learning_rate=task.learning_rate,
        adap_kl_ctrl=False,
        init_kl_coef=task.kl_coef,
        gamma=task.gamma,
        lam=task.gae_lambda,
        cliprange=task.clip_eps,
        cliprange_value=task.value_clip_eps,
        vf_coef=task.value_coef,
        seed=task.seed,
    )
    optimizer = AdamW(
        model.parameters(), lr=task.learning_rate, betas=(task.beta1, task.beta2), weight_decay=0.0, fused=True
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, pad_token=PADDING)
    return PPOTrainer(config, model, tokenizer=tokenizer, optimizer=optimizer)


def main(folder: Path) -> None:
    """Steps as they are asked for."""
    task, turns = Task.read(folder), Turns.of_this_process()
    torch.set_num_threads(task.threads)
    trainer, judge = build_trainer(folder, task), load_judge(folder, task)
    prompts = [torch.tensor(ids) for ids in read_prompts(folder)]

    def step(number: int) -> tuple[float, float]:
        queries = prompts[number * task.batch : (number + 1) * task.batch]
        with turns.phase("generation"):
            responses = trainer.generate(
                queries,
                batch_size=task.batch,
                return_prompt=False,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                max_new_tokens=task.response_tokens,
                eos_token_id=-1,
                pad_token_id=0,
            )
        with turns.phase("forward"):
            scores = judge_ids(judge, torch.stack([torch.cat(pair) for pair in zip(queries, responses, strict=True)]))
        stats = trainer.step(queries, responses, list(scores))
        turns.add("forward", stats["time/ppo/forward_pass"])
        return float(scores.mean()), float(stats["objective/kl"])

    turns.ready(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)
    turns.run(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
