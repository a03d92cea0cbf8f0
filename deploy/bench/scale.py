"""`bench scale`."""
import json, sys, tempfile
from pathlib import Path
from common.config import RunConfig
from common.config_file import load_config
from deploy.bench.latency import Latency

TINY = Path(__file__).parents[1] / "configs" / "tiny.toml"
CHUNK = 16

def config_of(workers: int, *, staleness: int, chunks_per_worker: int) -> RunConfig:
    config = load_config(TINY, [
        "model.max_tokens=4096", f"rollout.workers={workers}", f"rollout.chunk_sequences={CHUNK}", "rollout.num_cpus=0.0001",
        "reward_service.num_cpus=0.001", "learner.num_cpus=0.1",
        f"reward_service.replicas={max(2, workers // 16)}", f"ppo.trajectories_per_update={int(workers * chunks_per_worker) * CHUNK}",
        "ppo.updates=1000000", "ppo.prompt_tokens={ min = 16, max = 64 }", "ppo.response_tokens={ min = 512, max = 1536 }",
    ])
    return config if not staleness else config.model_copy(update={"ppo": config.ppo.model_copy(update={"max_staleness": staleness})})

def main():
    from deploy.on_ray.environment import protect_local_cluster
    protect_local_cluster()
    from deploy.cluster import RayRuntime
    from deploy.bench.scaled_run import scaled_run, Timing
    import statistics
    sizes = [int(x) for x in sys.argv[1].split(",")]
    stale, per, warm, win = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
    median = float(sys.argv[6]) if len(sys.argv) > 6 else 10.0
    runtime = RayRuntime(config_of(8, staleness=stale, chunks_per_worker=per))
    try:
        for w in sizes:
            with tempfile.TemporaryDirectory() as folder:
                r = scaled_run(config_of(w, staleness=stale, chunks_per_worker=per), runtime, Latency(median_s=median), Timing(warm, win), Path(folder))
            cpu = r.ended.cpu_s - r.begun.cpu_s
            by = {k: round(v - r.begun.by_thread.get(k, 0), 2) for k, v in r.ended.by_thread.items()}
            by = {k: v for k, v in sorted(by.items(), key=lambda x: -x[1])[:8]}
            ws = sorted(r.waits_s) or [0]
            print(json.dumps(dict(workers=w, eff=round(r.efficiency, 4), samples=r.samples, updates=r.updates, cpu_ms_per_sample=1e3 * cpu / max(1, r.samples), cores=cpu / r.wall_s,
              p50_ms=1e3 * ws[len(ws)//2], p95_ms=1e3 * ws[int(.95*len(ws))], started=r.started_s, rss_mb=[c.rss_bytes >> 20 for c in (r.before, r.begun, r.ended)], by=by,
              scrape_kb=r.scrape_bytes // 1000, scrape_ms=1e3 * r.scrape_s)), flush=True)
    finally:
        runtime.close()

main() if __name__ == "__main__" else None
