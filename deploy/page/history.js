// What the page knows of the past: updates, events, samples. Turns them into what the curves draw.

import { count, number, signed } from "./words.js";

const MOST = 1000;
/** Newest that are never thinned out. */
const WHOLE = MOST / 2;
const STEERED = new Set(["settings", "scale", "autoscale", "pause", "resume"]);
const LOST = new Set(["lost", "restart", "given_up", "learner_lost", "resumed", "error"]);
const GUARDED = new Set(["guard_alarm", "guard_stop", "rolled_back", "nonfinite_update", "over_optimisation"]);

const known = (value) => (Number.isFinite(value) ? value : undefined);

/** Kind of mark that an event leaves on the curves; null: none. */
export function markOf(event) {
  if (STEERED.has(event)) return "steered";
  if (LOST.has(event)) return "lost";
  return GUARDED.has(event) ? "guarded" : null;
}

/** At most MOST rows: the newest in full, older ones whose number is a multiple of k, the least power of two that does;
 *  as deploy/run_folder/thinning.py, so that what is fetched later fits. */
export function thin(rows, numberOf) {
  if (rows.length <= MOST) return rows;
  const whole = rows.slice(-WHOLE);
  let older = rows.slice(0, -WHOLE);
  let k = Math.max(2, numberOf(rows[1]) - numberOf(rows[0])); // as thin as the oldest are already
  do older = older.filter((row) => numberOf(row) % k === 0);
  while ((k *= 2) && older.length > MOST - WHOLE);
  return [...older, ...whole];
}

export class History {
  constructor() {
    this.updates = [];
    this.events = [];
    this.samples = [];
    this.lineage = null;
  }

  /** Fetches what is new; true where something is. `ask` gets a path and answers its JSON. */
  async refresh(ask, status) {
    const isNewPast = status.lineage !== this.lineage || (status.step ?? 0) < (this.updates.at(-1)?.step ?? 0);
    if (isNewPast && status.lineage !== null) {
      this.updates = [];
      this.lineage = status.lineage;
    }
    const after = this.updates.at(-1)?.step ?? 0;
    const isBehind = status.step === null ? !this.updates.length : status.step > after;
    const number = this.events.at(-1)?.number ?? -1;
    const [updates, events] = await Promise.all([
      isBehind ? ask(`/v1/updates?thinned=true&after=${after}`) : { updates: [] },
      ask(`/v1/events?thinned=true&after=${number}`),
    ]);
    this.updates = thin([...this.updates, ...updates.updates], (row) => row.step);
    this.events = thin([...this.events, ...events.events], (row) => row.number);
    if (updates.updates.length) this.samples = (await ask("/v1/samples?limit=24")).samples;
    return updates.updates.length + events.events.length > 0;
  }

  /** In words, what is not drawn of a long run; nothing where all is. */
  thinned() {
    const said = [];
    const steps = this.updates.map((row) => row.step);
    const gap = steps.length > 1 ? steps[1] - steps[0] : 1;
    const wholeFrom = steps.find((step, place) => place > 0 && step - steps[place - 1] === 1);
    if (gap > 1) said.push(`every ${gap}th update is drawn until ${count(wholeFrom ?? steps.at(-1))}, all later ones`);
    const events = this.events.at(-1)?.number + 1 || 0;
    if (events > this.events.length) said.push(`marks of ${count(this.events.length)} of ${count(events)} events`);
    return said.join("; ").replace("every 2th", "every 2nd");
  }

  /** Seconds of an update, as the middle one of the last few; null before the first. */
  get updateSeconds() {
    const last = this.updates.slice(-5).map((row) => row.seconds.total).filter(Number.isFinite).sort((a, b) => a - b);
    return last.length ? last[Math.floor(last.length / 2)] : null;
  }

  /** By update, what happened while it ran. */
  marks() {
    const made = new Map();
    const timed = this.updates.filter((row) => row.time);
    for (const event of this.events) {
      const kind = markOf(event.event);
      const row = kind && timed.find((update) => Date.parse(update.time) >= Date.parse(event.time));
      if (!row) continue;
      made.set(row.step, [...(made.get(row.step) ?? []), { kind, text: event.text.split("\n", 1)[0] }]);
    }
    return made;
  }

  reward() {
    return this.updates.map(({ step, metrics }) => {
      const value = known(metrics.score_mean);
      const std = known(metrics.score_std);
      const isSpread = value !== undefined && std !== undefined;
      return {
        step,
        value,
        low: isSpread ? value - std : undefined,
        high: isSpread ? value + std : undefined,
        said: `${signed(value)} ± ${number(std)}`,
      };
    });
  }

  /** Of the measure that the target is of; `measure` is a name of metrics. */
  kl(measure, target) {
    return this.updates.map(({ step, metrics, settings }) => {
      const value = known(metrics[measure]);
      const wanted = known(settings?.kl_target ?? target);
      const coef = known(metrics.kl_coef);
      const said = [number(value), wanted === undefined ? "" : `target ${number(wanted)}`];
      if (coef !== undefined) said.push(`coefficient ${number(coef)}`);
      return { step, value, target: wanted, said: said.filter(Boolean).join(", ") };
    });
  }

  throughput() {
    return this.updates.map(({ step, metrics, seconds }) => {
      const value = known(metrics.response_tokens / seconds.total);
      return { step, value, said: `${number(value)} tokens/s, ${number(seconds.total)} s` };
    });
  }

  /** The best and the worst of the newest update that has any. */
  extremes() {
    const trained = this.samples.filter((row) => row.kind !== "heldout");
    const newest = trained[0]?.step;
    return trained.filter((row) => row.step === newest);
  }
}
