"""Learning: does the policy get better, and is the reward honest?"""

from typing import Final

from deploy.dashboards.panels import Dashboard, Panel, Query, Row, gauge, happened, heatmap, or_zero, recorded, series

OVERVIEW: Final = Row("Now", (
    Panel("Update", (Query(series("step")), Query(series("updates_planned"), "planned")), kind="stat", width=4),
    Panel("Remaining", (Query(recorded("remaining_seconds:estimate")),), "s", kind="stat", width=4,
          note="Updates that are left, times the mean seconds of one."),
    Panel("Score", (Query(series("score_mean")),), kind="stat", width=4),
    Panel("KL per token", (Query(series("kl_token_mean_nats")),), "none", kind="stat", width=4,
          steps=((0.3, "yellow"), (0.5, "red"))),
    Panel("Judge prefers it to before PPO", (Query(series("evaluation_win_ratio")),), "percentunit", kind="stat",
          width=4),
    Panel("Over-optimised", (Query(series("over_optimised")),), kind="stat", width=4,
          words=((0, "no", "green"), (1, "yes", "red"))),
))  # fmt: skip

REWARD: Final = Row("Reward", (
    Panel("Score of an update", (Query(series("score_mean"), "{{run}} mean"),
                                 Query(series("score_min"), "{{run}} lowest"),
                                 Query(series("score_max"), "{{run}} highest"))),
    gauge("Spread of the scores", "score_std", "none"),
    heatmap("Scores", "sample_score", "none"),
    Panel("Reward and judge on held-out prompts, rise since before PPO",
          (Query(series("evaluation_reward_rise_ratio"), "{{run}} reward"),
           Query(series("evaluation_judge_rise_ratio"), "{{run}} judge"),
           Query(series("evaluation_gap_ratio"), "{{run}} gap")),
          note="Both must rise. The reward alone: the policy has found a way to please it that people would not."),
    Panel("Held-out prompts", (Query(series("evaluation_reward_mean"), "{{run}} reward"),
                               Query(series("evaluation_judge_mean"), "{{run}} judge"))),
    Panel("By the judge", (Query(series("evaluation_win_ratio"), "{{run}} preferred to before PPO"),
                           Query(series("evaluation_judge_positive_ratio"), "{{run}} positive")), "percentunit"),
))  # fmt: skip

KL: Final = Row("Distance to the reference", (
    Panel("KL per response", (Query(series("kl_seq_sum_nats"), "{{run}} training"),
                              Query(series("evaluation_kl_seq_sum_nats"), "{{run}} evaluation"),
                              Query(series("setting", 'setting="kl_target"'), "{{run}} target")), "none",
          note="In nats. The target is per response or per token, as ppo.kl.measure says."),
    Panel("KL per token", (Query(series("kl_token_mean_nats"), "{{run}} training"),
                           Query(series("evaluation_kl_token_mean_nats"), "{{run}} evaluation")), "none",
          steps=((0.5, "red"),)),
    Panel("KL coefficient", (Query(series("kl_coefficient"), "{{run}} coefficient"),
                             Query(series("kl_target_ratio"), "{{run}} KL over its target")), "none"),
))  # fmt: skip

PPO: Final = Row("PPO", (
    gauge("Entropy per token", "entropy_nats", "none"),
    gauge("KL within an update", "approx_kl_nats", "none", steps=((0.05, "red"),)),
    Panel("Clipped tokens", (Query(series("clip_ratio"), "{{run}} policy"),
                             Query(series("value_clip_ratio"), "{{run}} value")), "percentunit", steps=((0.3, "red"),)),
    gauge("Explained variance", "explained_variance_ratio", "none"),
    Panel("Losses", (Query(series("policy_loss"), "{{run}} policy"), Query(series("value_loss"), "{{run}} value"))),
    gauge("Gradient norm", "gradient_norm", "none"),
    Panel("Learning rate", (Query(series("learning_rate"), "{{run}} used"),
                            Query(series("setting", 'setting="learning_rate"'), "{{run}} peak in force")), "sci"),
    Panel("Updates cut short, groups without spread",
          (Query(series("early_stopped"), "{{run}} early stop"),
           Query(series("zero_std_group_ratio"), "{{run}} groups of one score")), "percentunit"),
    Panel("Importance weights of older samples",
          (Query(series("importance_weight_mean"), "{{run}} mean"),
           Query(series("importance_weight_max"), "{{run}} largest, before it is cut")), "none",
          note="Where generation runs ahead of learning (ppo.max_staleness); 1 means that nothing has moved."),
    Panel("Tokens whose weight was cut", (Query(series("importance_cut_ratio")),), "percentunit",
          steps=((0.05, "red"),)),
    Panel("From sampling policy to learner",
          (Query(series("stale_kl_nats"), "{{run}} older weights"), Query(series("fresh_kl_nats"), "{{run}} the same")),
          "sci", note="KL per token: of older weights, how far the policy has moved; of the same ones, rounding."),
    Panel("Optimizer steps left out", (Query(happened("nonfinite_steps", "instance")),), steps=((1, "red"),)),
))  # fmt: skip

TEXT: Final = Row("Text", (
    Panel("Response length", (Query(series("response_length_tokens"), "{{run}} training"),
                              Query(series("evaluation_response_length_tokens"), "{{run}} evaluation"))),
    heatmap("Lengths", "sample_response_tokens", "none"),
    Panel("How responses end", (Query(series("ended_ratio"), "{{run}} by EOS"),
                                Query(series("truncated_ratio"), "{{run}} cut"),
                                Query(series("evaluation_truncated_ratio"), "{{run}} cut, evaluation")), "percentunit"),
    gauge("Repetition", "repetition_ratio", "percentunit", steps=((0.3, "red"),)),
    Panel("Distinct word pairs", (Query(series("evaluation_distinct_2_ratio")),), "percentunit"),
    Panel("Guard rails raised",
          (Query(or_zero(f"sum by (run, guard) ({series('guard_alarm')})"), "{{run}} {{guard}}"),),
          steps=((1, "red"),)),
    Panel("Length and score, against the last 6 hours",
          (Query(recorded("response_length_tokens:ratio6h"), "{{run}} length, times"),
           Query(recorded("score_mean:rise6h"), "{{run}} score, standard deviations")),
          note="Both up: the policy may be paid for length."),
    Panel("Evaluation of update", (Query(series("evaluation_step")),)),
))  # fmt: skip

LEARNING: Final = Dashboard(
    "mini-chatgpt-learning", "Learning", "Does the policy get better, and is the reward honest?",
    (OVERVIEW, REWARD, KL, PPO, TEXT),
)  # fmt: skip
