// Asks the run how it is, again and again, and shows what it says. Nothing is asked of any other address.

import { Curve } from "./curves.js";
import { find, put, show } from "./dom.js";
import { History } from "./history.js";
import { showAlarms, showBooks, showEvents, showHeader, showPools, showTexts, showWaits } from "./sections.js";
import { Steering } from "./steering.js";
import { clock, duration, number, signed } from "./words.js";

const POLL_MS = 1000;
const HIDDEN_MS = 10_000;
const SLOWEST_MS = 15_000;
const ANSWER_MS = 25_000;

/** An answer that is no success: `status` 0 where there was none at all. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** One request; answers its JSON, or throws Refused with the words of the API. */
async function ask(path, { method = "GET", body, token = steering.token } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  let said;
  try {
    const signal = AbortSignal.timeout(ANSWER_MS);
    answer = await fetch(path, { method, headers, signal, cache: "no-store", body: body && JSON.stringify(body) });
    said = await answer.json();
  } catch (error) {
    throw new Refused(answer?.status ?? 0, `no answer: ${error.message}`);
  }
  if (!answer.ok) throw new Refused(answer.status, said.message ?? `refused with HTTP ${answer.status}`);
  if (token === steering.token) steering.role = answer.headers.get("X-Minichatgpt-Role");
  return said;
}

const history = new History();
const curves = {
  reward: new Curve(find("curves"), { slug: "reward", title: "Reward", unit: "score, mean ± std", format: signed }),
  kl: new Curve(find("curves"), { slug: "kl", title: "KL", unit: "nats", format: number, startsAtZero: true }),
  throughput: new Curve(find("curves"), {
    slug: "throughput", title: "Throughput", unit: "response tokens/s", format: number, startsAtZero: true,
  }),
};
const steering = new Steering(ask, () => tick());
let latest = null;
let lastSeen = null;
let failures = 0;
let timer = null;
let isAsking = false;

function showStatus(status, hasNews) {
  showHeader(status, history.updateSeconds);
  showAlarms(status.alarms);
  showWaits(status);
  showPools(status.pools);
  showBooks(status);
  steering.follow(status);
  if (hasNews || latest?.settings?.kl_target !== status.settings?.kl_target) {
    const marks = history.marks();
    const measure = status.kl_measure;
    curves.kl.unit(measure === "kl_seq_sum" ? "nats per response" : "nats per token");
    curves.reward.show(history.reward(), marks);
    curves.kl.show(history.kl(measure, status.settings?.kl_target), marks);
    curves.throughput.show(history.throughput(), marks);
    const kinds = new Set([...marks.values()].flat().map((mark) => mark.kind));
    for (const kind of ["steered", "guarded", "lost"]) show(find(`legend-${kind}`), kinds.has(kind));
    show(find("legend-target"), curves.kl.points.some((point) => Number.isFinite(point.target)));
    put(find("thinned"), history.thinned());
    showTexts(history.extremes());
    showEvents(history.events);
  }
  show(find("curves"), history.updates.length > 0 || status.step !== null);
}

/** What a live run has to say about itself where it is not PPO that runs. */
function calmNotice(status) {
  if (status.step !== null || status.stopping) return "";
  const what = status.stage ? `Stage ${status.stage} runs.` : "No stage runs at this moment.";
  return history.updates.length ? what : `${what} Curves, workers and samples come with PPO.`;
}

function lostWords(error) {
  if (error?.status) return `The run answers, but not with how it is: ${error.message}.`;
  return "The run does not answer: it is over, or its driver hangs. minichatgpt status says which.";
}

/** What stands in the way of a live view; nothing where there is nothing. */
function showLink(error, waitMs) {
  const isOver = Boolean(latest?.stopping);
  const link = !error ? "live" : error.status === 401 || error.status === 403 ? "locked" : isOver ? "ended" : "lost";
  document.body.dataset.link = link;
  const since = lastSeen ? `Last seen ${clock(lastSeen)}.` : "";
  const again = `Trying again every ${duration(waitMs / 1000)}.`;
  const texts = {
    live: latest ? calmNotice(latest) : "",
    locked: `${error?.message} Paste a token below: the control token, or one that only reads.`,
    ended: `The run has ended: ${latest?.stopping}. ${since}`,
    lost: `${lostWords(error)} ${since} ${again}`,
  };
  put(find("notice"), texts[link]);
  show(find("notice"), texts[link] !== "");
  find("notice").classList.toggle("calm", link === "live");
  if (link === "ended" || link === "lost" || link === "locked") {
    put(find("state"), { ended: "ended", lost: "no answer", locked: "token needed" }[link]);
    find("state").dataset.state = link;
    steering.off();
  }
}

async function tick() {
  clearTimeout(timer);
  if (isAsking) return;
  isAsking = true;
  let problem = null;
  try {
    const status = await ask("/v1/run");
    const hasNews = await history.refresh(ask, status);
    showStatus(status, hasNews || latest === null);
    latest = status;
    lastSeen = new Date();
    failures = 0;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    problem = error;
    failures += 1;
    if (error.status === 401) steering.forget(error.message); // of an earlier start; reading may go on without
  } finally {
    isAsking = false;
  }
  const calm = document.hidden ? HIDDEN_MS : POLL_MS;
  const waitMs = failures ? Math.min(SLOWEST_MS, POLL_MS * 2 ** failures) : calm;
  const isPassing = failures === 1 && problem.status >= 429; // one poll that was too many is no news
  if (!isPassing) showLink(problem, waitMs);
  timer = setTimeout(tick, waitMs);
}

document.addEventListener("visibilitychange", () => document.hidden || tick());
tick();
