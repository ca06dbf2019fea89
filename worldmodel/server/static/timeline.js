// The way so far as a film strip: drag along it to see an earlier moment, then go back there or branch off.

import { clock, icon, iconButton, make } from "./dom.js";

const PICTURES = 16; // on the strip, about

export class Timeline {
  /**
   * @param {{onRewind: function(number), onFork: function(number), onSwitch: function(number), onDiscard: function(number),
   *   onPeek: function(string|null, string)}} handlers
   *   onPeek: an earlier moment is looked at (address of its picture, or null when no more; how long ago)
   */
  constructor(element, base, handlers) {
    this.base = base;
    this.handlers = handlers;
    this.period = 0.25; // seconds of a chunk
    this.moments = [];
    this.chosen = null;
    this.pictures = new Map(); // at -> its node on the strip

    this.strip = make("div", { class: "wm-film", "aria-hidden": "true" });
    this.slider = make("input", { type: "range", class: "wm-scrub", "aria-label": "Timeline", min: 0, max: 0, step: 1, value: 0 });
    this.when = make("span", { class: "wm-when" });
    const back = (this.back = make("button", { type: "button", class: "wm-pill" }, icon("back"), "Go back here"));
    const fork = (this.fork = make("button", { type: "button", class: "wm-pill" }, icon("branch"), "Branch off here"));
    const cancel = (this.cancel = iconButton("close", "Stay where you are", () => this.choose(null)));
    back.addEventListener("click", () => this.act(handlers.onRewind));
    fork.addEventListener("click", () => this.act(handlers.onFork));
    this.branches = make("div", { class: "wm-branches", role: "group", "aria-label": "Branches of this world" });
    element.append(
      make("div", { class: "wm-line" }, this.strip, this.slider),
      make("div", { class: "wm-line-foot" }, this.when, back, fork, cancel, this.branches),
    );
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => {
      if (event.code === "Enter" && this.chosen !== null) this.act(handlers.onRewind);
      if (event.code === "Escape") this.choose(null);
    });
    this.choose(null);
  }

  get at() {
    return this.moments.at(-1)?.at ?? 0;
  }

  get first() {
    return this.moments[0]?.at ?? 0;
  }

  /** A whole `timeline` message. */
  load(message) {
    this.moments = message.moments;
    this.choose(null);
  }

  /** One more chunk was made. */
  add({ chunk, pose, thumbnail }) {
    while (this.moments.length && this.at > chunk) this.moments.pop();
    this.moments.push({ at: chunk + 1, pose, thumbnail });
    this.draw();
  }

  /** One cannot go back further than to `first` any more. */
  forget(first) {
    const kept = this.moments.findIndex((moment) => moment.at >= first);
    if (kept > 0) this.moments.splice(0, kept);
  }

  choose(at) {
    this.chosen = at === null || at >= this.at ? null : Math.max(at, this.first);
    this.draw();
    const moment = this.chosen === null ? null : this.moments.find((m) => m.at >= this.chosen);
    this.handlers.onPeek(moment?.thumbnail ? new URL(moment.thumbnail, this.base).href : null, this.ago);
  }

  get ago() {
    return this.chosen === null ? "now" : `${clock((this.at - this.chosen) * this.period)} ago`;
  }

  act(handler) {
    const at = this.chosen;
    if (at === null) return;
    this.choose(null);
    handler(at);
  }

  draw() {
    const { first, at, slider } = this;
    [slider.min, slider.max] = [first, Math.max(at, first + 1)];
    slider.value = this.chosen ?? slider.max;
    slider.disabled = at === first;
    slider.setAttribute("aria-valuetext", this.ago);
    const length = clock((at - first) * this.period);
    this.when.textContent = this.chosen === null ? (at > first ? `${length} walked · drag along the strip to go back` : "Your way will be here") : this.ago;
    for (const button of [this.back, this.fork, this.cancel]) button.hidden = this.chosen === null;
    this.drawStrip();
  }

  drawStrip() {
    const { first, at } = this;
    const step = 2 ** Math.max(0, Math.ceil(Math.log2(Math.max(1, at - first + 1) / PICTURES)));
    const wanted = new Map();
    for (const moment of this.moments) {
      const slot = Math.floor(moment.at / step);
      if (moment.thumbnail && !wanted.has(slot)) wanted.set(slot, moment);
    }
    const shown = new Set();
    let before = null;
    for (const [slot, moment] of wanted) {
      const end = Math.min((slot + 1) * step, at + 1);
      const node = this.picture(moment);
      node.style.flexGrow = Math.max(1, end - Math.max(slot * step, first));
      shown.add(moment.thumbnail);
      if (before ? before.nextSibling !== node : this.strip.firstChild !== node) before ? before.after(node) : this.strip.prepend(node);
      before = node;
    }
    for (const [address, node] of this.pictures) {
      if (shown.has(address)) continue;
      node.remove();
      this.pictures.delete(address);
    }
  }

  picture({ thumbnail }) {
    let node = this.pictures.get(thumbnail);
    if (!node) {
      node = make("img", { alt: "", draggable: "false", src: new URL(thumbnail, this.base).href });
      this.pictures.set(thumbnail, node);
    }
    return node;
  }

  /** Branches as in a `world` message: where one is, and what else there is. */
  mark({ branch, branches = [] }) {
    const told = JSON.stringify([branch, branches]);
    if (told === this.told) return;
    this.told = told;
    this.branches.replaceChildren();
    if (branches.length < 2) return;
    branches.forEach((b, index) => {
      const name = index === 0 ? "First way" : `Branch ${index}`;
      const chip = make("button", { type: "button", class: "wm-chip", "aria-pressed": String(b.branch === branch) }, name);
      chip.addEventListener("click", () => b.branch !== branch && this.handlers.onSwitch(b.branch));
      const item = make("span", { class: "wm-branch" }, chip);
      if (b.branch !== branch) item.append(iconButton("close", `Forget ${name}`, () => this.handlers.onDiscard(b.branch)));
      this.branches.append(item);
    });
  }
}
