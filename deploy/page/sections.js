// The sections of the page but the curves: each function shows one from the run's status.

import { find, make, pairs, put, rows, show } from "./dom.js";
import { bytes, clock, count, duration, NONE, number, percent, signed, words } from "./words.js";

const MOST_MEMBERS = 64;
const MOST_EVENTS = 200;
const LONG_CHARACTERS = 350;
const BRIEF_CHARACTERS = 150;
const TITLES = { rollout: "Rollout workers", reward: "Reward replicas" };
const COLUMNS = [
  ["slot", ""], ["state", ""], ["weights", ""], ["age", "number"], ["busy", "busy"], ["tokens/s", "number"],
  ["memory", "number"], ["calls", "number"], ["restarts", "number"], ["last sign", "number"],
];

/** One word for how the run is. */
function stateOf(status) {
  if (status.stopping) return "stopping";
  if (status.pause === "paused") return "paused";
  if (status.pause === "asked") return "pausing";
  return status.stage ? "running" : "between stages";
}

/** How far the stage is, in updates of PPO or in steps of its own; null where it has not said. */
function progressOf({ step, updates, progress }, updateSeconds) {
  if (step !== null && updates > 0) {
    const left = updateSeconds === null ? null : (updates - step) * updateSeconds;
    return { unit: "update", step, total: updates, left, message: "" };
  }
  if (!progress || progress.total <= 0) return null;
  return { unit: "step", step: progress.step, total: progress.total, left: progress.left_s, message: progress.message };
}

export function showHeader(status, updateSeconds) {
  put(find("run"), status.run);
  put(find("stage"), status.stage ? `stage ${status.stage}` : "");
  const state = stateOf(status);
  put(find("state"), state);
  find("state").dataset.state = state;
  document.title = `${status.run} · ${status.step === null ? state : `${status.step}/${status.updates} ${state}`}`;
  const facts = [];
  const done = progressOf(status, updateSeconds);
  show(find("progress"), done !== null);
  if (done !== null) {
    const share = Math.min(1, done.step / done.total);
    const bar = find("progress-bar");
    bar.setAttribute("aria-valuemax", done.total);
    bar.setAttribute("aria-valuenow", done.step);
    bar.firstElementChild.style.width = `${100 * share}%`;
    put(find("progress-text"), `${done.unit} ${count(done.step)} of ${count(done.total)} · ${percent(share)}`);
    facts.push(["left", state === "running" && done.left !== null ? `about ${duration(done.left)}` : NONE]);
    if (done.message) facts.push(["now", done.message]);
  }
  if (status.phase) facts.push(["phase", `${words(status.phase)} ${duration(status.phase_s)}`]);
  facts.push(["running for", duration((Date.now() - Date.parse(status.started_at)) / 1000)]);
  if (status.stopping) facts.push(["why", status.stopping]);
  pairs(find("facts"), facts);
}

export function showAlarms(alarms) {
  const list = find("alarms");
  const text = JSON.stringify(alarms);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(
    ...alarms.map((alarm) =>
      make("li", "", make("b", "", words(alarm.guard)), ` since update ${alarm.since_step}: ${alarm.text}`),
    ),
  );
  show(list, alarms.length > 0);
}

export function showWaits(status) {
  const { waits, pools } = status;
  show(find("waits"), waits !== null);
  if (waits === null) return;
  const isPaused = status.pause === "paused";
  put(find("advice"), isPaused ? `Paused: nobody has work. Before: ${waits.advice}` : waits.advice);
  put(find("waits-when"), isPaused ? "the last update before the pause" : "the last update");
  const { autoscaler } = status;
  show(find("autoscaler"), autoscaler !== null);
  if (autoscaler !== null) {
    const { min_workers: fewest, max_workers: most, direction, reason } = autoscaler;
    put(find("autoscaler"), `Autoscaler, ${count(fewest)} to ${count(most)} workers · ${direction}: ${reason}`);
  }
  const queue = (pool) => (pool?.queued ? `, ${count(pool.queued)} queued for ${duration(pool.queue_age_s)}` : "");
  const bars = [
    ["Learner", "waits for samples", waits.learner_wait_fraction, ""],
    ["Rollout workers", "idle", waits.worker_idle_fraction, queue(pools.rollout)],
    ["Reward replicas", "idle", waits.reward_idle_fraction, queue(pools.reward)],
  ];
  const host = find("waits-bars");
  bars.forEach(([who, verb, share, more], place) => {
    const bar = host.children[place] ?? host.appendChild(makeWaitBar(who));
    const track = bar.children[1];
    track.firstElementChild.style.width = `${100 * (1 - share)}%`;
    track.setAttribute("aria-valuenow", Math.round(100 * share));
    track.setAttribute("aria-valuetext", `${verb} ${percent(share)} of the time`);
    put(bar.lastElementChild, `${verb} ${percent(share)}${more}`);
  });
}

function makeWaitBar(who) {
  const track = make("div", "track", make("i"));
  for (const [name, value] of [["role", "meter"], ["aria-label", who], ["aria-valuemin", 0], ["aria-valuemax", 100]]) {
    track.setAttribute(name, value);
  }
  return make("div", "wait", make("span", "", who), track, make("span", "number"));
}

export function showPools(pools) {
  const host = find("pools");
  show(find("members"), Object.keys(pools).length > 0);
  for (const [role, pool] of Object.entries(pools)) {
    const place = find(`pool-${role}`) ?? host.appendChild(makePool(role));
    const [title, scroller, rest] = place.children;
    const waiting = pool.queued ? ` · ${count(pool.queued)} requests wait, the oldest ${duration(pool.queue_age_s)}` : "";
    put(title, `${TITLES[role] ?? words(role)}: ${pool.active} of ${pool.target} active${waiting}`);
    rows(scroller.querySelector("tbody"), pool.members.slice(0, MOST_MEMBERS).map(memberCells));
    const errors = pool.members.filter((member) => member.last_error).map((m) => `${m.slot}: ${brief(m.last_error)}`);
    const hidden = pool.members.length - MOST_MEMBERS;
    put(rest, [...errors.slice(0, 8), ...(hidden > 0 ? [`and ${count(hidden)} more`] : [])].join("\n"));
    show(rest, rest.textContent !== "");
  }
}

function makePool(role) {
  const head = make("tr", "", ...COLUMNS.map(([name, className]) => make("th", className, name)));
  for (const cell of head.children) cell.scope = "col";
  const table = make("table", "members", make("thead", "", head), make("tbody"));
  const scroller = make("div", "scroller", table);
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", TITLES[role] ?? role);
  const pool = make("div", "pool", make("h3"), scroller, make("p", "errors"));
  pool.id = `pool-${role}`;
  return pool;
}

function memberCells(member) {
  const busy = member.busy_fraction;
  const cells = [
    { text: member.slot, title: `process ${member.pid ?? NONE}, node ${member.node ?? NONE}` },
    { text: member.is_waiting ? "starting: no node yet" : words(member.state), className: `state ${member.state}` },
    { text: member.weights ?? NONE },
    { text: duration(member.weights_age_s), className: "number" },
    { text: percent(busy), className: "busy", width: Math.min(1, busy ?? 0) },
    { text: number(member.tokens_per_s), className: "number" },
    { text: bytes(member.rss_bytes), className: "number" },
    { text: count(member.calls_held), className: "number" },
    { text: count(member.restarts), className: member.restarts ? "number worry" : "number" },
    { text: duration(member.heartbeat_age_s), className: "number" },
  ];
  return cells.map((cell, place) => ({ ...cell, label: COLUMNS[place][0] })); // where there is no room for a head
}

export function showBooks(status) {
  const entries = Object.entries(status.ledger).flatMap(([fate, number]) =>
    typeof number === "number"
      ? [[words(fate), count(number)]]
      : Object.entries(number).map(([reason, some]) => [`${words(fate)}: ${words(reason)}`, count(some)]),
  );
  pairs(find("ledger"), entries);
  show(find("books"), entries.length > 0);
  const { newest_checkpoint: newest, learner } = status;
  const kept = [["checkpoint", newest ? `update ${newest.step}, ${duration(newest.age_s)} old` : "none yet", newest?.url]];
  if (learner) kept.push(["learner", `${words(learner.state)}, ${learner.restarts} restarts`, `process ${learner.pid ?? NONE}`]);
  if (status.lineage !== null) kept.push(["lineage of the weights", String(status.lineage)]);
  kept.push(["rollbacks by guards", String(status.rollbacks)]);
  pairs(find("kept"), kept);
}

/** Texts that a model wrote: they are set as text, whatever they hold. */
export function showTexts(samples) {
  show(find("samples"), samples.length > 0);
  if (samples.length) put(find("samples-title"), `Best and worst of update ${samples[0].step}`);
  find("texts").replaceChildren(...["best", "worst"].map((kind) => textColumn(kind, samples)));
}

function textColumn(kind, samples) {
  const made = samples.filter((row) => row.kind === kind).map((row) => {
    const length = row.prompt.length + row.response.length;
    const more = length > LONG_CHARACTERS ? ` · ${count(length)} characters, scroll` : "";
    const marks = make("p", "marks", `score ${signed(row.score)} · KL ${number(row.kl_seq_sum)} nats${more}`);
    const gap = /\s$/.test(row.prompt) || /^[\s.,;:!?]/.test(row.response) ? "" : " ";
    return make("article", "text", make("p", "", make("span", "prompt", row.prompt), gap, make("span", "response", row.response)), marks);
  });
  return make("div", kind, make("h3", "", kind), ...made);
}

const brief = (text) => (text.length <= BRIEF_CHARACTERS ? text : `${text.slice(0, BRIEF_CHARACTERS).replace(/\s+\S*$/, "")} …`);

/** What an event says; a long one in short, and whole when it is opened. */
function told(text) {
  if (brief(text) === text) return make("span", "what", text);
  return make("details", "what", make("summary", "", brief(text)), make("p", "", text));
}

export function showEvents(events) {
  const list = find("events");
  const last = Number(list.dataset.last ?? -1);
  for (const event of events.filter((row) => row.number > last)) {
    const time = make("time", "", clock(event.time));
    time.dateTime = event.time;
    const kind = make("span", `kind ${event.event}`, words(event.event));
    list.prepend(make("li", "", time, kind, told(event.text)));
    list.dataset.last = event.number;
  }
  while (list.children.length > MOST_EVENTS) list.lastElementChild.remove();
  show(find("log"), list.children.length > 0);
}
