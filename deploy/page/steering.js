// The token and the buttons: what this page asks of the run.

import { find, make, put, show } from "./dom.js";
import { setting, words } from "./words.js";

const KEPT = "minichatgpt-token";
const SETTINGS = {
  temperature: "of sampling",
  learning_rate: "peak; all rates move with it",
  kl_target: "nats",
  kl_coef: "weight of the KL penalty",
};

export class Steering {
  /** `ask` sends a request; `refresh` looks at the run at once. */
  constructor(ask, refresh) {
    this.ask = ask;
    this.refresh = refresh;
    this.status = null;
    /** As whom the run has let us in with this token: anonymous, reader or steerer. */
    this.role = null;
    this.token = sessionStorage.getItem(KEPT) ?? "";
    this.fields = new Map();
    find("token-form").addEventListener("submit", (event) => this.take(event));
    find("pause").addEventListener("click", () => this.pause());
    for (const role of ["rollout", "reward"]) {
      find(`scale-${role}`).addEventListener("submit", (event) => this.scale(event, role));
    }
    find("settings").addEventListener("submit", (event) => this.change(event));
    this.show();
  }

  /** Keeps the token if the run knows it. An empty field forgets the one that is kept. */
  async take(event) {
    event.preventDefault();
    const token = find("token").value.trim();
    find("token").value = "";
    try {
      if (token) await this.ask("/v1/run", { token });
      this.keep(token);
      this.say(token ? "" : "The token is forgotten.");
    } catch (error) {
      this.say(error.message, true);
    }
    this.refresh();
  }

  keep(token) {
    this.token = token;
    if (token) sessionStorage.setItem(KEPT, token);
    else sessionStorage.removeItem(KEPT);
    this.show();
  }

  /** A token that the run does not know any more is of no use. */
  forget(why) {
    if (!this.token) return;
    this.keep("");
    this.say(why, true);
  }

  say(text, isBad = false) {
    put(find("answer"), text);
    find("answer").dataset.is = isBad ? "bad" : "good";
  }

  /** The run as it is: what can be steered, and what the fields hold before anybody types. */
  follow(status) {
    this.status = status;
    const isPaused = status.pause !== "none";
    put(find("pause"), isPaused ? "Resume" : "Pause");
    find("pause").setAttribute("aria-pressed", String(isPaused));
    for (const role of ["rollout", "reward"]) {
      const input = find(`${role}-size`);
      if (document.activeElement !== input && !input.dataset.typed) input.value = status.pools[role]?.target ?? "";
    }
    this.followSettings(status.settings ?? {});
    this.show();
  }

  followSettings(settings) {
    for (const [name, hint] of Object.entries(SETTINGS)) {
      const value = settings[name];
      if (!this.fields.has(name)) this.fields.set(name, this.makeField(name, hint));
      const { row, input } = this.fields.get(name);
      show(row, typeof value === "number");
      input.placeholder = setting(value);
    }
    show(find("settings"), Object.keys(settings).length > 0);
  }

  makeField(name, hint) {
    const input = make("input");
    Object.assign(input, { id: `set-${name}`, type: "number", step: "any", min: "0" });
    const label = make("label", "", words(name), make("small", "", hint));
    label.htmlFor = input.id;
    const row = make("div", "row", label, input);
    find("settings-fields").append(row);
    return { row, input };
  }

  off() {
    this.status = null;
    this.show();
  }

  /** Buttons work where there is a token and a run that can be steered. */
  show() {
    const canSteer = Boolean(this.status?.pools.rollout) && !this.status.stopping;
    const onlyReads = Boolean(this.token) && this.role === "reader";
    find("controls").disabled = !this.token || onlyReads || !canSteer;
    if (this.status) show(find("controls"), Boolean(this.status.pools.rollout));
    let text = "Buttons need the token from control.token of the run folder. It stays in this tab.";
    if (this.token) text = "The token is held by this tab only; an empty one forgets it.";
    if (this.token && this.status && !canSteer) {
      text = this.status.stopping ? "The run is ending." : `Stage ${this.status.stage ?? "–"} has nothing to steer.`;
    }
    if (onlyReads) {
      text = "This token only reads: it shows everything and changes nothing. Buttons need the one from control.token.";
    }
    put(find("token-state"), text);
  }

  async send(method, path, body, done) {
    if (!this.token) return;
    this.say("…");
    try {
      await this.ask(path, { method, body });
      this.say(done);
    } catch (error) {
      this.say(error.message, true);
      if (error.status === 401) this.forget(error.message);
    }
    this.refresh();
  }

  pause() {
    const isPaused = this.status.pause !== "none";
    const done = isPaused ? "It goes on." : "It stands still once the running update is done.";
    if (isPaused) this.send("POST", "/v1/run/resume", undefined, done);
    else this.send("POST", "/v1/run/pause", { reason: "on the page of the run" }, done);
  }

  scale(event, role) {
    event.preventDefault();
    const size = find(`${role}-size`).valueAsNumber;
    const name = { rollout: "rollout_workers", reward: "reward_replicas" }[role];
    this.send("POST", "/v1/run/scale", { [name]: size }, `${words(name)}: ${size} asked for.`);
  }

  change(event) {
    event.preventDefault();
    const typed = [...this.fields].filter(([, { input }]) => input.value !== "");
    if (!typed.length) return this.say("Nothing to change: type a value first.", true);
    const wanted = Object.fromEntries(typed.map(([name, { input }]) => [name, input.valueAsNumber]));
    for (const [, { input }] of typed) input.value = "";
    const said = Object.entries(wanted).map(([name, value]) => `${words(name)} ${setting(value)}`).join(", ");
    this.send("PATCH", "/v1/run/settings", wanted, `From the next update on: ${said}.`);
  }
}
