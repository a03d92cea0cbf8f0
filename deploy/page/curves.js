// One curve over the updates as SVG: axes, a band, a target, marks, and the values under the pointer or the arrow keys.

import { draw, make, put } from "./dom.js";
import { fixed } from "./words.js";

const HEIGHT = 190;
const ROOM = { top: 12, right: 12, bottom: 22, left: 46 };

/** Round numbers within low…high, at most about `most`, and how many decimals tell them apart. */
export function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const made = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    made.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  }
  return { made, decimals: Math.max(0, -Math.floor(Math.log10(step))) };
}

/** Lowest and highest of what is drawn, with some air. */
function extent(points, startsAtZero) {
  const values = points.flatMap((p) => [p.value, p.low, p.high, p.target]).filter((v) => Number.isFinite(v));
  let low = startsAtZero ? Math.min(0, ...values) : Math.min(...values);
  let high = Math.max(...values);
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  if (!startsAtZero || low < 0) low -= air;
  high += air;
  return [low, high];
}

/** "M…L…" through the finite points; a gap where one is missing; in steps, as a value holds until it is changed. */
function path(points, x, y, key, isStep = false) {
  let text = "";
  let isDown = false;
  for (const point of points) {
    const value = point[key];
    const isThere = Number.isFinite(value);
    const [across, up] = [x(point.step).toFixed(1), isThere ? y(value).toFixed(1) : ""];
    if (isThere) text += !isDown ? `M${across} ${up}` : isStep ? `H${across}V${up}` : `L${across} ${up}`;
    isDown = isThere;
  }
  return text;
}

export class Curve {
  /** `of` has slug, title, unit, format, startsAtZero. */
  constructor(host, of) {
    this.of = of;
    this.points = [];
    this.marks = new Map();
    this.at = null;
    this.value = make("b", "newest");
    this.readout = make("output", "readout");
    this.svg = draw("svg", { height: HEIGHT, tabindex: 0, role: "img" });
    this.svg.id = `curve-${of.slug}`;
    this.unitText = make("span", "unit", of.unit);
    const head = make("h2", "", `${of.title} `, this.unitText);
    const figure = make("figure", `card curve ${of.slug}`, make("div", "head", head, this.value), this.svg, this.readout);
    host.append(figure);
    new ResizeObserver(() => this.render()).observe(figure);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.look(null));
    this.svg.addEventListener("blur", () => this.look(null));
    this.svg.addEventListener("keydown", (event) => this.step(event));
  }

  unit(text) {
    this.of.unit = text;
    put(this.unitText, text);
  }

  /** Points {step, value, low, high, target}, and by step the marks {kind, text}. */
  show(points, marks) {
    this.points = points;
    this.marks = marks;
    const newest = points.at(-1);
    put(this.value, newest ? this.of.format(newest.value) : "");
    this.render();
  }

  point(event) {
    if (!this.x || !this.points.length) return;
    const wanted = event.clientX - this.svg.getBoundingClientRect().left;
    let nearest = 0;
    this.points.forEach((point, place) => {
      const distance = Math.abs(this.x(point.step) - wanted);
      if (distance < Math.abs(this.x(this.points[nearest].step) - wanted)) nearest = place;
    });
    this.look(nearest);
  }

  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !this.points.length) return;
    event.preventDefault();
    const last = this.points.length - 1;
    this.look(Math.max(0, Math.min(last, (this.at ?? last) + move)));
  }

  look(place) {
    if (this.at === place) return;
    this.at = place;
    this.render();
  }

  render() {
    const width = this.svg.parentElement.clientWidth - 24;
    if (width <= 0) return;
    this.svg.setAttribute("width", width);
    this.svg.replaceChildren();
    const drawn = this.points.filter((point) => Number.isFinite(point.value));
    this.describe(drawn);
    if (!drawn.length) {
      const text = this.points.length ? "not recorded in this run" : "the first update is not done yet";
      this.svg.append(draw("text", { x: width / 2, y: HEIGHT / 2, class: "empty" }, text));
      return;
    }
    this.axes(width, drawn);
    this.lines();
    this.cursor();
  }

  describe(drawn) {
    const newest = drawn.at(-1);
    const text = newest ? `newest, update ${newest.step}: ${this.of.format(newest.value)}` : "nothing yet";
    this.svg.setAttribute("aria-label", `${this.of.title}, ${this.of.unit}; ${text}. Arrow keys read the values.`);
  }

  axes(width, drawn) {
    const [low, high] = extent(drawn, this.of.startsAtZero);
    const [first, last] = [this.points[0].step, this.points.at(-1).step];
    const [from, to] = first === last ? [first - 1, last + 1] : [first, last];
    const right = width - ROOM.right;
    const bottom = HEIGHT - ROOM.bottom;
    this.x = (step) => ROOM.left + ((right - ROOM.left) * (step - from)) / (to - from);
    this.y = (value) => bottom - ((bottom - ROOM.top) * (value - low)) / (high - low);
    const { made, decimals } = ticks(low, high, 5);
    for (const at of made) {
      const y = this.y(at);
      this.svg.append(
        draw("line", { x1: ROOM.left, x2: right, y1: y, y2: y, class: at === 0 ? "zero" : "grid" }),
        draw("text", { x: ROOM.left - 7, y: y + 3.5, class: "tick left" }, fixed(at, decimals)),
      );
    }
    for (const at of ticks(from, to, Math.max(2, Math.floor(width / 70))).made.filter(Number.isInteger)) {
      const inside = Math.min(this.x(at), width - 2 - 3.5 * String(at).length);
      this.svg.append(draw("text", { x: inside, y: HEIGHT - 6, class: "tick" }, String(at)));
    }
    this.bottom = bottom;
  }

  lines() {
    const { points, x, y } = this;
    for (const [step, marks] of this.marks) {
      if (step < points[0].step || step > points.at(-1).step) continue;
      for (const kind of new Set(marks.map((mark) => mark.kind))) {
        this.svg.append(draw("line", { x1: x(step), x2: x(step), y1: ROOM.top - 4, y2: this.bottom, class: `mark ${kind}` }));
      }
    }
    const spread = points.filter((point) => Number.isFinite(point.low) && Number.isFinite(point.high));
    if (spread.length > 1) {
      const there = path(spread, x, y, "high");
      const back = path([...spread].reverse(), x, y, "low").replace("M", "L");
      this.svg.append(draw("path", { d: `${there}${back}Z`, class: "band" }));
    }
    this.svg.append(draw("path", { d: path(points, x, y, "target", true), class: "target" }));
    this.svg.append(draw("path", { d: path(points, x, y, "value"), class: "line" }));
    const newest = points.findLast((point) => Number.isFinite(point.value));
    this.svg.append(draw("circle", { cx: x(newest.step), cy: y(newest.value), r: 3, class: "dot" }));
  }

  cursor() {
    const point = this.points[this.at ?? -1];
    if (!point) return put(this.readout, "");
    const at = this.x(point.step);
    this.svg.append(draw("line", { x1: at, x2: at, y1: ROOM.top, y2: this.bottom, class: "cursor" }));
    if (Number.isFinite(point.value)) {
      this.svg.append(draw("circle", { cx: at, cy: this.y(point.value), r: 4, class: "dot" }));
    }
    const said = (this.marks.get(point.step) ?? []).map((mark) => mark.text);
    put(this.readout, [`update ${point.step}: ${point.said}`, ...said].join(" · "));
  }
}
